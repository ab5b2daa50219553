"""Roles of heads as a HeadVis tree."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from ..data.neutral import neutral_passages
from ..models.hooked import HookedModel
from ..models.types import HeadId
from ..results.head_vis import HeadVisTree, head_vis_files
from ..results.head_vis_sequences import (
    METRICS,
    HeadVisSequence,
    attention_metrics,
    in_intervals,
    sparse_sequence,
)
from .role_scores import RoleScores

MOST_TOKENS = 128
"""Of a neutral text, whose attention goes into a HeadVis tree."""
INTERVALS = 4


def head_vis_tree(
    model: HookedModel,
    roles: Sequence[RoleScores],
    chosen: Bool[np.ndarray, "layer head"],
    expression: str,
    *,
    texts: int = 0,
) -> HeadVisTree:
    """The roles as metrics, the chosen set as one more; with `texts` neutral passages also the
    attention of every head on them and HeadVis's own metrics of it."""
    described = {one.name: f"{one.method}; from {one.source}" for one in roles}
    tree = HeadVisTree(
        model.name,
        {**{one.name: one.grid for one in roles}, "in_set": chosen.astype(float)},
        {**described, "in_set": f"1 for heads that {expression} chooses"},
        pipeline={
            "model_name": model.name,
            "weights_sha256": model.weights_sha256,
            "sources": [one.source for one in roles],
            # Neuronpedia's loaders refuse a tree without these.
            "dataset_name": "none",
            "n_sequences": 0,
            "seq_len": 0,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": "none",
        },
    )
    return with_attention(tree, model, texts) if texts else tree


def with_attention(tree: HeadVisTree, model: HookedModel, texts: int) -> HeadVisTree:
    """The tree with every head's attention on neutral texts, cut at `MOST_TOKENS` tokens."""
    passages = neutral_passages()[:texts]
    sampled: dict[HeadId, list[HeadVisSequence]] = {h: [] for h in model.anatomy.all_heads()}
    sums = {name: np.zeros(tree.shape) for name in METRICS}
    longest = 0
    for number, text in enumerate(passages):
        ids, pieces, rows = _attention(model, text)
        longest = max(longest, len(ids))
        for head, kept in sampled.items():
            weights = rows[head.layer, head.head]
            kept.append(sparse_sequence(weights, pieces, number))
            for name, value in attention_metrics(weights, ids).items():
                sums[name][head.layer, head.head] += value / len(passages)
    known = {name: grid for name, grid in sums.items() if name not in tree.metrics}
    return replace(
        tree,
        metrics={**tree.metrics, **known},
        descriptions={**tree.descriptions, **{name: METRICS[name] for name in known}},
        sequences={head: in_intervals(kept, INTERVALS) for head, kept in sampled.items()},
        pipeline={
            **tree.pipeline,
            "dataset_name": "mnemoscope neutral passages",
            "n_sequences": len(passages),
            "seq_len": longest,
            "attn_implementation": "rows of post-rotary queries and keys",
        },
    )


def zipped(tree: HeadVisTree) -> bytes:
    """The tree as one zip archive, without a folder around it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in head_vis_files(tree).items():
            archive.writestr(path, content)
    return made.getvalue()


def _attention(model: HookedModel, text: str) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Token ids, their texts, and all attention `[layer, head, query, key]` of a text's opening."""
    batch = model.tokens(text)
    ids = batch.ids[0, :MOST_TOKENS]
    cut = replace(batch, ids=batch.ids[:, :MOST_TOKENS], mask=batch.mask[:, :MOST_TOKENS])
    rows = model.rows(cut, "all")[:, 0].cpu().numpy()
    return ids.cpu().numpy(), tuple(model.pieces(ids.tolist())), rows
