"""Head scores of the one prompt on the screen: zero ablation, direct effect, logits at END.

A head's `z` at END is set to zero, everything after it is recomputed token by token, and the change
of the answers' logits is read (`interventions.path_patching`, one sweep for all heads). With two
answers and the sign convention of `probes.conflict_heads`, `LD = logit(memory) - logit(context)`:

- memory score = -d(LD): positive where the head speaks for the memory answer;
- context score = +d(LD): positive where it speaks for the context answer.

Unlike the scores of a run, both come from one ablation, so they are mirror images. With one answer
the score is `-d(logit)` of that answer. One prompt gives no uncertainty: nothing is tested.
"""

from __future__ import annotations

import polars
import torch

from ..interventions.end_chain import EndChain
from ..interventions.path_patching import direct_effects, end_states
from ..models.errors import MnemoscopeError
from ..probes.conflict_heads import Role

METHOD = "this prompt, zero ablation, direct effect"


def prompt_scores(chain: EndChain, text: str, ids: dict[str, int]) -> polars.DataFrame:
    """One row a head: `layer`, `head`, `kv_head` and one column for each role in `ids`.

    `ids` maps a role to the first token of its answer. Raises `MnemoscopeError` without an answer.
    """
    if not ids:
        raise MnemoscopeError("no answer to score heads on: type a memory or a context answer.")
    model = chain.model
    with model.lock:
        states = end_states(model, model.tokens(text))
        tokens = torch.tensor([list(ids.values())])
        effects = direct_effects(chain, states, torch.zeros_like(states.z), tokens)
    change = dict(zip(ids, effects.change[0].double().cpu().T.tolist(), strict=True))
    heads = model.anatomy.all_heads()
    return polars.DataFrame(
        {
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "kv_head": [model.anatomy.kv_of(head).kv_head for head in heads],
            **_by_role(change),
        }
    )


def quantity(ids: dict[str, int], role: Role) -> str:
    """The score in words, for the axis: what is summed with which sign."""
    other: Role = "context" if role == "memory" else "memory"
    if other in ids:
        return f"{role} score: fall of logit({role}) − logit({other}) without the head"
    return f"{role} score: fall of logit({role}) without the head"


def _by_role(change: dict[str, list[float]]) -> dict[str, list[float]]:
    if len(change) == 1:
        return {role: [-x for x in values] for role, values in change.items()}
    fall = [c - m for m, c in zip(change["memory"], change["context"], strict=True)]
    return {"memory": fall, "context": [-x for x in fall]}
