# %% [markdown]
# # 1. Memory heads and context heads
#
# **Claim** (Jin et al. 2024, PH3): some attention heads speak for what the weights know, others
# for what the context says. Pruning the top *context* heads should raise the rate of memory
# answers (RM); pruning the top *memory* heads should raise the rate of context answers (RC).
#
# **Expected direction**: RM up and RC up respectively, by more than matched random heads.
#
# **What would refute it**: the change lies inside the range of the random heads, or it comes only
# with a loss of closed-book or agreeing accuracy that is as large (then heads were broken, not
# steered). Subjects are split: heads are found, sizes chosen and effects measured on different
# subjects, and once more on a relation that was never used before.

# %%
from dataclasses import asdict, dataclass

import numpy as np
import polars
from IPython.display import display
from mnemoscope.data.facts.items import data_hash, load_relation, split_subjects
from mnemoscope.data.neutral import neutral_passages
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import load_model, wrap
from mnemoscope.models.perplexity import perplexity
from mnemoscope.organisms import planted_model, planted_relation
from mnemoscope.probes.conflict_heads import measure_effects, summarise, superposed, table
from mnemoscope.probes.elicitation import conflict_items
from mnemoscope.probes.head_selection import (
    HarmLimits,
    head_edits,
    head_norms,
    mean_outputs,
    ranked,
    select_size,
    size_grid,
)
from mnemoscope.probes.knowledge_conflict import (
    balanced,
    compare,
    kept_answers,
    rates_table,
    restrict,
    usage,
)
from mnemoscope.results.controls import matched_random_heads
from mnemoscope.results.figures import head_grid_figure, rates_figure
from mnemoscope.results.provenance import collect_provenance
from mnemoscope.results.report import figure_html
from mnemoscope.results.run_folder import open_run
from mnemoscope.results.study import preset_name, run_key, runs_folder, show


@dataclass(frozen=True)
class Params:
    """What decides the numbers."""

    model: str
    relation: str
    held_out: str | None
    templates: tuple[int, ...]
    percents: tuple[float, ...]
    draws: int
    conditions: tuple[str, ...] = ("closed", "agree", "substitution", "coherent", "qa")
    raise_memory_under: str = "qa"
    raise_context_under: str = "substitution"
    demonstrations: int = 3
    seed: int = 0


PRESETS = {
    "smoke": Params(
        "engram",
        "capital",
        None,
        (0,),
        (2, 5),
        3,
        conditions=("closed", "agree", "substitution"),
        raise_memory_under="substitution",
        demonstrations=0,
    ),
    "planted": Params(
        "planted", "planted", None, (0,), (6, 12), 3, raise_memory_under="substitution"
    ),
    "engram": Params(
        "engram",
        "capital",
        "state_capital",
        (0, 1, 2),
        (2, 5, 10, 20),
        20,
        raise_memory_under="substitution",
        demonstrations=0,
    ),
    "small": Params("smollm2", "capital", "demonym", (0, 1, 2), (1, 2, 3, 5, 9), 20),
    "paper": Params("smollm2", "capital", "country_in_french", (0, 1, 2), (1, 3, 5, 7, 9, 15), 50),
}
params = PRESETS[preset_name()]
params

# %% [markdown]
# ## The model and what it knows
# Items are kept when the model's own closed-book answer is right, in the wording asked.

# %%
if params.model == "planted":
    planted = planted_model()
    model, relation = wrap(planted.module, planted.tokenizer), planted_relation(planted)
else:
    model, relation = load_model(params.model), load_relation(params.relation)
parts = split_subjects(relation, params.seed)
options = {
    "templates": params.templates,
    "demonstrations": params.demonstrations,
    "seed": params.seed,
}
asked = {part: conflict_items(model, relation, parts[part], **options) for part in parts}
items = {part: known.items for part, known in asked.items()}
polars.DataFrame(
    [
        {
            "part": part,
            "facts": len(parts[part]),
            "items the model knows": len(known.items),
            "subjects": len({item.subject for item in known.items}),
        }
        for part, known in asked.items()
    ]
)

# %% [markdown]
# ## Scores
# Exact path patching: every head's direct effect at END under both corruptions.

# %%
config = run_key(asdict(params), weights=model.weights_sha256, data=data_hash(relation))
run = open_run(runs_folder(), "study-01", config)
chain = build_chain(model)
effects = measure_effects(chain, items["find"], run=run)
heads = summarise(effects, estimand="direct", seed=params.seed)
both = [f"L{layer}.H{head}" for layer, head in np.argwhere(superposed(heads))]
print("split-half reliability", heads.reliability)
print("stability over wordings", heads.template_stability)
print("superposed heads (do both jobs):", both or "none")
table(heads, model).sort("memory", descending=True).head(12)

# %%
figures = {
    role: head_grid_figure(
        heads.scores(role),
        title=f"{role} score",
        axis_label=f"{role} score (logits; positive: speaks for the {role} answer)",
        significant=heads.q(role) <= 0.05,
    )
    for role in ("memory", "context")
}
for figure in figures.values():
    show(figure)

# %% [markdown]
# ## How many heads? Chosen on other subjects, under a do-no-harm constraint
# A size counts only if closed-book and agreeing accuracy fall by at most 5 points and neutral
# perplexity rises by at most 10 %.

# %%
rankings = {"memory": ranked(heads.scores("context")), "context": ranked(heads.scores("memory"))}
under = {"memory": params.raise_memory_under, "context": params.raise_context_under}
sizes = size_grid(model, params.percents)
sizes = sorted({1, *sizes})
plain = params.model == "planted"
passages = [i.prompt_agree for i in items["tune"]] if plain else list(neutral_passages())
selections = {
    wanted: select_size(
        model,
        rankings[wanted],
        items["tune"],
        passages,
        wanted=wanted,
        condition=under[wanted],
        sizes=sizes,
        limits=HarmLimits(),
        run=run,
    )
    for wanted in ("memory", "context")
}
polars.DataFrame(
    [
        {"raise": wanted, "under": found.condition, "chosen": found.chosen, **asdict(effect)}
        for wanted, found in selections.items()
        for effect in found.effects
    ]
)

# %% [markdown]
# ## The effect on held-out subjects, beside matched random heads
# Every size is shown, not only the chosen one. Controls: random heads of the same (or the nearest)
# layers and of similar norm, never among the best heads of either role (a twelfth of all heads,
# at most 15).

# %%
norms = head_norms(model, [item.prompt_sub for item in items["tune"]])
answers = {"before": kept_answers(run, "before", model, items["test"], params.conditions)}
for wanted, ranking in rankings.items():
    for k in [k for k in sizes if k <= len(ranking)]:
        label = f"raise {wanted}, top {k}"
        answers[label] = kept_answers(
            run, label, model, items["test"], params.conditions, head_edits(ranking[:k])
        )
rates = rates_table(answers, seed=params.seed)
rates.filter(polars.col("condition").is_in(list(under.values()))).pivot(
    on="answer", index=["label", "condition", "n"], values="rate"
)

# %%
anatomy = model.anatomy
best = max(1, min(15, anatomy.n_layers * anatomy.n_heads // 12))
barred = {head for ranking in rankings.values() for head in ranking[:best]}
control_rows = []
for wanted, ranking in rankings.items():
    k = selections[wanted].chosen or sizes[0]
    draws = matched_random_heads(
        ranking[:k],
        anatomy.n_layers,
        anatomy.n_heads,
        draws=params.draws,
        seed=params.seed,
        norms=norms,
        exclude=barred - set(ranking[:k]),
    )
    for number, draw in enumerate(draws.draws):
        label = f"random {number} for raise {wanted}, top {k}"
        given = kept_answers(
            run, label, model, items["test"], ("closed", under[wanted]), head_edits(draw)
        )
        kind = compare(answers["before"], given, under[wanted], wanted).change.value
        closed = compare(answers["before"], given, "closed", "memory").change.value
        control_rows.append({"raise": wanted, "k": k, "change": kind, "closed": closed})
controls = polars.DataFrame(control_rows)
controls.group_by("raise", "k").agg(
    polars.col("change").min().alias("lowest"),
    polars.col("change").median().alias("median"),
    polars.col("change").max().alias("highest"),
    polars.col("closed").min().alias("worst closed-book change"),
)

# %% [markdown]
# ## Verdict
# Change of the wanted rate with its 95 % interval over subjects, the exact McNemar test over
# items, where it lies among the random draws, and what it cost.

# %%
verdict_rows = []
base_perplexity = perplexity(model, passages)
for wanted, ranking in rankings.items():
    random = controls.filter(polars.col("raise") == wanted)["change"].to_numpy()
    control_k = selections[wanted].chosen or sizes[0]
    for k in [k for k in sizes if k <= len(ranking)]:
        given = answers[f"raise {wanted}, top {k}"]
        change = compare(answers["before"], given, under[wanted], wanted, seed=params.seed)
        row = {"raise": wanted, "under": under[wanted], "k": k}
        row |= {"chosen": k == selections[wanted].chosen, "change": change.change.value}
        row |= {"low": change.change.low, "high": change.change.high, "mcnemar": change.mcnemar_p}
        as_far = (1 + int((random >= change.change.value).sum())) / (1 + len(random))
        row["p against random"] = as_far if k == control_k else None
        for cost in ("closed", "agree"):
            row[cost] = compare(answers["before"], given, cost, "memory").change.value
        row["perplexity"] = perplexity(model, passages, head_edits(ranking[:k])) / base_perplexity
        verdict_rows.append(row)
verdict = polars.DataFrame(verdict_rows)
with polars.Config(tbl_rows=40, tbl_cols=20):
    display(verdict)

# %% [markdown]
# ### Milder edits
# The best head alone: zero, mean, and half strength.

# %%
means = mean_outputs(model, [item.prompt_sub for item in items["tune"]])
mild_rows = []
for wanted, ranking in rankings.items():
    for mode in ("zero", "mean", "scale"):
        edits = head_edits(ranking[:1], mode, factor=0.5, means=means)
        label = f"mild {mode} for raise {wanted}"
        conditions = ("closed", under[wanted])
        given = kept_answers(run, label, model, items["test"], conditions, edits)
        change = compare(answers["before"], given, under[wanted], wanted)
        closed = compare(answers["before"], given, "closed", "memory").change.value
        mild_rows.append(
            {"raise": wanted, "head": str(ranking[0]), "edit": mode}
            | {"change": change.change.value, "mcnemar": change.mcnemar_p, "closed": closed}
        )
polars.DataFrame(mild_rows)

# %% [markdown]
# ### The balanced set (equal numbers of memory and context answers before pruning)

# %%
balanced_rows = []
for wanted in rankings:
    try:
        chosen = balanced(answers["before"], under[wanted], seed=params.seed)
    except Exception as none_left:
        print(wanted, none_left)
        continue
    small = {label: restrict(given, chosen) for label, given in answers.items()}
    part = rates_table(small, seed=params.seed).filter(polars.col("condition") == under[wanted])
    balanced_rows.append(part.with_columns(polars.lit(wanted).alias("raise")))
polars.concat(balanced_rows).pivot(
    on="answer", index=["raise", "label", "n"], values="rate"
) if balanced_rows else "no balanced set under these conditions"

# %% [markdown]
# ### A relation that was never used to find or to tune

# %%
held_rows = []
if params.held_out is not None:
    other = load_relation(params.held_out)
    facts = split_subjects(other, params.seed)["test"]
    known = conflict_items(model, other, facts, **{**options, "templates": (0,)}).items
    plans = {"before": ()}
    for wanted, ranking in rankings.items():
        plans[f"raise {wanted}, top 1"] = head_edits(ranking[:1])
    for label, edits in plans.items():
        given = kept_answers(run, f"held out, {label}", model, known, params.conditions, edits)
        held_rows.append(rates_table({label: given}, seed=params.seed))
polars.concat(held_rows).pivot(
    on="answer", index=["label", "condition", "n"], values="rate"
) if held_rows else "no held-out relation in this preset"

# %%
shown = rates.filter(
    polars.col("condition").is_in(list(under.values()))
    & polars.col("label").is_in(["before", *(f"raise {w}, top 1" for w in rankings)])
).with_columns((polars.col("label") + " / " + polars.col("condition")).alias("condition"))
bars = rates_figure(shown, title="Answers on held-out subjects")
show(bars)

# %% [markdown]
# ## Checks
# The claim itself is *reported*, not asserted; these must hold whatever the model does.

# %%
totals = rates.group_by("label", "condition").agg(polars.col("rate").sum())["rate"]
assert np.allclose(totals, 1.0)
assert not {i.subject for i in items["find"]} & {i.subject for i in items["test"]}
assert heads.reliability["memory"] > 0.5, "scores do not reproduce over halves of the subjects"
assert heads.reliability["context"] > 0.5, "scores do not reproduce over halves of the subjects"
best_memory, best_context = rankings["context"][0], rankings["memory"][0]
assert heads.memory.low[best_memory.layer, best_memory.head] > 0
assert heads.context.low[best_context.layer, best_context.head] > 0
if plain:
    assert (best_memory,) == planted.memory_heads
    assert (best_context,) == planted.context_heads
    for wanted in rankings:
        after = usage(answers[f"raise {wanted}, top 1"], under[wanted])
        assert (after.rm if wanted == "memory" else after.rc).value == 1
provenance = collect_provenance(
    **model.identity,
    data_sha256=data_hash(relation),
    prompt_template=" | ".join(relation.templates[t] for t in params.templates),
    seed=params.seed,
    estimand="direct effects; rates of greedy answers",
)
pages = {f"{name}.html": figure_html(figure, title=name) for name, figure in figures.items()}
pages["rates.html"] = figure_html(bars, title="rates")
arrays = {"change": effects.change.astype(np.float32)}
print(run.folder if run.finished else run.finish(verdict, arrays, provenance, pages))
