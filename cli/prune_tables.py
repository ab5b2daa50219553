"""What `prune` shows people when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import say, show_table

if TYPE_CHECKING:
    from ..interventions.checkpoint_diff import CheckpointDiff
    from .prune_eval import Evaluation
    from .prune_kept import PruneRun


def show_pruned(run: PruneRun) -> None:
    """The evaluation, if there was one, and where the folder is."""
    done = run.pruned
    say(f"run      {run.folder}")
    if done is None:  # `prune_kept` has said that an earlier attempt wrote it
        return
    if done.evaluation is not None:
        show_evaluation(done.evaluation)
    if done.tasks:
        show_table("lm-eval", ("task", "metric", "before", "after"), done.tasks)
    if done.gap is not None:
        say(f"reloaded: logits equal the measured model's to {done.gap:.2g} of the largest")
    say(f"written and checked: {done.out}")
    say(f"Next: mnemoscope prune verify {done.out}, or mnemoscope models show {done.out}")


def show_evaluation(found: Evaluation) -> None:
    """Every metric before and after, beside what random heads do."""
    from .prune_eval import COLUMNS

    show_table(f"{found.items} conflict items, before and after", COLUMNS, found.rows())
    if found.note:
        say(f"note: {found.note}")
    say(f"report   {found.run / 'report.html'}")


def show_diff(found: CheckpointDiff) -> None:
    """Files, then one row for each tensor that differs, with its heads."""
    for where, names in ((found.a, found.only_in_a), (found.b, found.only_in_b)):
        for name in names:
            say(f"only in {where}: {name}")
    for name in found.changed_files:
        say(f"differs: {name}")
    rows = [
        (tensor.name, tensor.kind, f"{tensor.differing_bytes:,}", ", ".join(map(str, tensor.heads)))
        for tensor in found.tensors
    ]
    if rows:
        show_table("Tensors that differ", ("tensor", "what", "bytes", "heads"), rows)
        say(f"Next: mnemoscope prune verify {found.b} --source {found.a}")
    else:
        say("not one weight differs")
