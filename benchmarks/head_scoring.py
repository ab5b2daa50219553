"""What does scoring all heads for memory and context cost, in plain forward passes?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

from measuring import arguments, interleaved, over, report, table, times
from mnemoscope.data.facts.conflicts import ConflictItem
from mnemoscope.data.facts.items import load_relation, split_subjects
from mnemoscope.interventions.path_patching import build_chain, end_states
from mnemoscope.models import HeadId, HookedModel, load_model, wrap
from mnemoscope.organisms import planted_model, planted_relation
from mnemoscope.probes.conflict_heads import measure_effects
from mnemoscope.probes.elicitation import conflict_items
from naive import frozen_pass, keep_z, patched_pass, plain_pass

CLAIM = (
    "Scoring every head of a model under both corruptions costs a few plain forward passes, not "
    "one a head and corruption."
)
NOTE = (
    "One forward pass: the plain Hugging Face pass of the items' prompts as one batch, logits at "
    "END. Ours is `probes.conflict_heads.measure_effects` as a user calls it, with tokenising and "
    "all runs of the three prompts of an item. *naive measured*: hooked passes over three heads, "
    "times heads times corruptions, in units of the plain pass. Median of {rounds} interleaved "
    "rounds."
)
CORRUPTIONS = 2


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the conflict items of facts that it knows."""

    model: HookedModel
    items: tuple[ConflictItem, ...]


def main() -> None:
    given = arguments(CLAIM)
    subject = planted(3) if given.toy else smollm2(8)
    rounds = 2 if given.toy else 7
    rows = [measure(subject, estimand, rounds) for estimand in ("direct", "total_end")]
    columns = (
        *("model", "items", "T", "estimand", "ours s", "ours, passes", "naive, passes"),
        *("naive measured, passes", "ratio"),
    )
    lines = [
        f"{row[3]}: {len(subject.model.anatomy.all_heads())} heads x {CORRUPTIONS} corruptions "
        f"cost {row[5]:.1f} forward passes (naive: {row[6]})."
        for row in rows
    ]
    note = NOTE.format(rounds=rounds)
    report(given, "head_scoring", CLAIM, "\n\n".join([table(columns, rows), *lines, note]))


def smollm2(n: int) -> Subject:
    """SmolLM2 and the first capitals of the tuning subjects that it knows."""
    model = load_model("smollm2", dtype="float32")
    relation = load_relation("capital")
    items = conflict_items(model, relation, split_subjects(relation, 0)["tune"]).items
    return Subject(model, items[:n])


def planted(n: int) -> Subject:
    """The planted model and its first items."""
    organism = planted_model()
    model = wrap(organism.module, organism.tokenizer, name="planted")
    relation = planted_relation(organism)
    return Subject(
        model, conflict_items(model, relation, relation.facts, demonstrations=0).items[:n]
    )


def measure(subject: Subject, estimand: str, rounds: int) -> tuple[object, ...]:
    """One table row: seconds of our scoring in units of the plain pass of the same batch."""
    model, items = subject.model, subject.items
    batch = model.tokens([item.prompt("substitution") for item in items])
    corrupted = end_states(model, model.tokens([item.prompt_cf_subject for item in items])).z
    clean = keep_z(model, batch)
    last = model.anatomy.n_layers - 1
    heads = (HeadId(0, 0), HeadId(last // 2, 1), HeadId(last, model.anatomy.n_heads - 1))
    one_head = {
        "direct": partial(frozen_pass, model, batch, clean, corrupted),
        "total_end": partial(patched_pass, model, batch, corrupted),
    }[estimand]
    chain = build_chain(model)
    seconds = interleaved(
        {
            "plain": partial(plain_pass, model, batch),
            "ours": partial(measure_effects, chain, items, estimand=estimand),
            **{str(head): partial(one_head, head) for head in heads},
        },
        rounds,
    )
    n_passes = len(model.anatomy.all_heads()) * CORRUPTIONS
    a_head = tuple(map(fmean, zip(*(seconds[str(head)] for head in heads), strict=True)))
    slow = times(n_passes, a_head)
    return (
        *(model.name, len(items), batch.ids.shape[1], estimand, median(seconds["ours"])),
        *(over(seconds["ours"], seconds["plain"]), n_passes, over(slow, seconds["plain"])),
        over(slow, seconds["ours"]),
    )


if __name__ == "__main__":
    main()
