"""How likely is every name after every prompt? Whole names, of any number of tokens.

A prompt is read once, then names behind its keys and values. Names that start with the same tokens
are read together, a name of one token needs no reading at all, and where only ranks are asked for,
a name whose first token alone is less likely than the whole right name needs none either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.facts.answers import leaks
from ..models.attention_edits import AttentionEdit
from ..models.batching import adaptive
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.prompt_cache import PromptCache, check_room, run_behind
from ..models.tokens import encode
from .asked_facts import answer_tokens
from .elicitation import Progress, silent
from .fact_batches import wide

ROWS = 256
"""Rows, a prompt and the beginning of a name, that are read at once."""
PROMPTS = 64
"""Prompts that are read at once, and whose keys and values are kept while names are read."""
# Logits held at once: 128 MB of float32, and as much again while they are normalised.
_LOGITS = 1 << 25

Name = tuple[int, ...]
EditsOf = Callable[[Sequence[int]], Sequence[Edit | AttentionEdit]]
"""The edits in force while the prompts of these indices are read, one row each in this order."""


def score_names(
    model: HookedModel,
    prompts: Sequence[str],
    names: Sequence[str],
    *,
    whole: Sequence[Sequence[int]] | None = None,
    among: Bool[np.ndarray, "prompt name"] | None = None,
    edits: EditsOf | None = None,
    rows: int = ROWS,
    progress: Progress = silent,
) -> Float[np.ndarray, "prompt name"]:
    """Total log-probability (nats, float64) of each whole name after each prompt.

    A space goes between prompt and name unless the prompt ends in one. What follows a name is not
    scored, so a name that starts with another one never beats it.

    `whole` asks for ranks only: the indices of the names that each prompt needs whole, the one to
    be ranked first. Another name is then read only where it may still be as likely as that one;
    elsewhere its score is that of its first token, an upper bound that lies below, so that ranks
    stay exact. `among` says which names are to be ranked with it at all. `edits` change the reading
    of the prompts; names stand behind what was edited.

    Memory: the result, keys and values of `rows` rows, and at most 256 MB of logits. Raises
    `PromptError` for an empty name or prompt, a name that merges with a prompt, or more tokens than
    the model reads; `MnemoscopeError` for nothing to score.
    """
    if not prompts or not names:
        raise MnemoscopeError("there is nothing to score: give at least one prompt and one name.")
    needed = _needed(whole, len(prompts), len(names))
    rivals_of = np.ones_like(needed) if among is None else among
    asked = [encode(model.text_tokenizer, prompt) for prompt in prompts]
    told = [tuple(answer_tokens(model, prompt, name) for name in names) for prompt in prompts]
    for ids, given in zip(asked, told, strict=True):
        check_room(model, ids, None, max(map(len, given)))
    scores = np.zeros((len(prompts), len(names)))
    done = 0
    for indices, tree in _alike(asked, told):

        def read(batch: Sequence[int], tree: NameTree = tree) -> np.ndarray:
            pass_ = _Prompts(model, [asked[i] for i in batch], edits and edits(batch))
            first = None if whole is None else np.array([whole[i][0] for i in batch])
            here = list(batch)
            return _scored(pass_, tree, needed[here], first, rivals_of[here], rows)

        starts = range(0, len(indices), PROMPTS)
        for batch, found in adaptive([indices[s : s + PROMPTS] for s in starts], read):
            scores[list(batch)] = found
            done += len(batch)
            progress(done, len(prompts))
    return scores


def ranks_of(
    scores: Float[np.ndarray, "prompt name"],
    own: Sequence[int],
    among: Bool[np.ndarray, "prompt name"] | None = None,
) -> Int[np.ndarray, " prompt"]:
    """Rank of each prompt's own name, 1 for the likeliest; a tie counts against it.

    `among` says which other names are compared with it (all by default).
    """
    rows = np.arange(len(scores))
    above = scores >= scores[rows, list(own)][:, None]
    if among is not None:
        above &= among
    above[rows, list(own)] = True
    return np.asarray(above.sum(axis=1))


def rivals(names: Sequence[str]) -> Bool[np.ndarray, "name name"]:
    """Which names can be told apart from which: neither holds the other as whole words.

    A name that starts with another is never likelier than it, so they are no rivals; nor is a name
    its own.
    """
    held = np.array([[leaks(text, [name]) for name in names] for text in names])
    return np.asarray(~(held | held.T | np.eye(len(names), dtype=bool)))


def name_lengths(
    model: HookedModel, prompts: Sequence[str], names: Sequence[str]
) -> Int[np.ndarray, " prompt"]:
    """Tokens of each prompt's own name, the one at the same place. Raises as `score_names`."""
    pairs = zip(prompts, names, strict=True)
    return np.array([len(answer_tokens(model, prompt, name)) for prompt, name in pairs])


@dataclass(frozen=True, eq=False)
class NameTree:
    """Names as token ids, and what has to be read to score them.

    `first` is each name's first token, which the prompt's END predicts. `stems` are the longest
    beginnings of names without their last token; `stem_of` is the one that holds a name's, -1 for a
    name of one token. `cells` are sorted by stem: the stem, a column of it, the token that has to
    follow there, and the name that is scored by it.
    """

    first: Int[np.ndarray, " name"]
    stems: tuple[Name, ...]
    stem_of: Int[np.ndarray, " name"]
    cells: Int[np.ndarray, "cell four"]


def name_tree(names: Sequence[Name]) -> NameTree:
    """Share the beginnings of names: a stem that another one starts with is read within it."""
    stems: list[Name] = []
    place: dict[Name, int] = {(): -1}
    for stem in sorted({name[:-1] for name in names}, key=len, reverse=True):
        if stem not in place:
            for end in range(1, len(stem) + 1):
                place.setdefault(stem[:end], len(stems))
            stems.append(stem)
    stem_of = [place[name[:-1]] for name in names]
    cells = [
        (stem_of[owner], column - 1, name[column], owner)
        for owner, name in enumerate(names)
        for column in range(1, len(name))
    ]
    return NameTree(
        np.array([name[0] for name in names]),
        tuple(stems),
        np.array(stem_of),
        np.array(sorted(cells), dtype=np.int64).reshape(-1, 4),
    )


def _needed(
    whole: Sequence[Sequence[int]] | None, prompts: int, names: int
) -> Bool[np.ndarray, "prompt name"]:
    needed = np.full((prompts, names), whole is None)
    if whole is not None and (len(whole) != prompts or not all(len(one) for one in whole)):
        raise MnemoscopeError(f"whole must name one name or more for each of {prompts} prompts.")
    for row, indices in enumerate(whole or ()):
        needed[row, list(indices)] = True
    return needed


def _alike(
    asked: Sequence[Sequence[int]], told: Sequence[tuple[Name, ...]]
) -> Iterator[tuple[list[int], NameTree]]:
    """Prompts of one length that are followed by the same tokens for every name."""

    def kind(i: int) -> tuple[int, tuple[Name, ...]]:
        return len(asked[i]), told[i]

    for (_, names), indices in groupby(sorted(range(len(asked)), key=kind), kind):
        yield list(indices), name_tree(names)


class _Prompts:
    """Prompts of one length, read: the logits at their ENDs, and the cache behind them."""

    @torch.no_grad()
    def __init__(
        self,
        model: HookedModel,
        asked: Sequence[Sequence[int]],
        edits: Sequence[Edit | AttentionEdit] | None,
    ) -> None:
        ids = torch.tensor(asked)
        end = torch.full((len(asked), 1), ids.shape[1] - 1)
        with model.intervene(edits or ()):
            logits, self.cache = run_behind(model, None, ids, end)
        self.model, self.ids = model, tuple(asked[0])
        self.log_probs = wide(logits[:, 0]).log_softmax(-1)

    @torch.no_grad()
    def behind(
        self, rows: Int[np.ndarray, " row"], suffixes: Sequence[Name]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Logits at all positions of one suffix behind a prompt in each row (right-padded)."""
        width = max(map(len, suffixes))
        ids = torch.tensor([[*suffix, *[0] * (width - len(suffix))] for suffix in suffixes])
        state = PromptCache(self.ids, _rows_of(self.cache, rows))
        columns = torch.arange(width).expand(len(rows), -1)
        return wide(run_behind(self.model, state, ids, columns)[0])


def _scored(
    prompts: _Prompts,
    tree: NameTree,
    needed: Bool[np.ndarray, "prompt name"],
    first: Int[np.ndarray, " prompt"] | None,
    among: Bool[np.ndarray, "prompt name"],
    rows: int,
) -> Float[np.ndarray, "prompt name"]:
    """Scores of the needed names, and of those `among` which may be as likely as the `first`."""
    scores = prompts.log_probs[:, torch.as_tensor(tree.first)].double().cpu().numpy()
    read = np.zeros((len(scores), len(tree.stems)), dtype=bool)
    _read(prompts, tree, needed, scores, read, rows)
    if first is not None:
        own = np.take_along_axis(scores, first[:, None], axis=1)
        _read(prompts, tree, (scores >= own) & among, scores, read, rows)
    return scores


def _read(
    prompts: _Prompts,
    tree: NameTree,
    needed: Bool[np.ndarray, "prompt name"],
    scores: Float[np.ndarray, "prompt name"],
    read: Bool[np.ndarray, "prompt stem"],
    rows: int,
) -> None:
    """Add to `scores`, in place, what the needed names' stems tell; each is read once at most."""
    row, name = np.nonzero(needed & (tree.stem_of >= 0))
    wanted = np.zeros_like(read)
    wanted[row, tree.stem_of[name]] = True
    row, stem = np.nonzero(wanted & ~read)
    read |= wanted
    order = np.argsort([len(tree.stems[i]) for i in stem], kind="stable")
    d_vocab = prompts.log_probs.shape[-1]
    for batch in _batches([len(tree.stems[stem[i]]) for i in order], rows, d_vocab):
        chosen = order[batch]
        logits = prompts.behind(row[chosen], [tree.stems[i] for i in stem[chosen]])
        _add_cells(tree, logits, row[chosen], stem[chosen], scores)


def _add_cells(
    tree: NameTree,
    logits: Float[Tensor, "row pos d_vocab"],
    row: Int[np.ndarray, " row"],
    stem: Int[np.ndarray, " row"],
    scores: Float[np.ndarray, "prompt name"],
) -> None:
    starts, stops = (np.searchsorted(tree.cells[:, 0], stem, side) for side in ("left", "right"))
    at = np.repeat(np.arange(len(stem)), stops - starts)
    cells = tree.cells[
        np.concatenate([np.arange(*ends) for ends in zip(starts, stops, strict=True)])
    ]
    place, column, token = map(torch.as_tensor, (at, cells[:, 1], cells[:, 2]))
    log_probs = logits[place, column, token] - logits.logsumexp(-1)[place, column]
    np.add.at(scores, (row[at], cells[:, 3]), log_probs.double().cpu().numpy())


def _batches(lengths: Sequence[int], rows: int, d_vocab: int) -> Iterator[slice]:
    """Slices of rows sorted by length, within `rows` and within the bound on logits."""
    start = 0
    while start < len(lengths):
        stop = start + 1
        while (
            stop < len(lengths)
            and stop - start < rows
            and (stop + 1 - start) * lengths[stop] * d_vocab <= _LOGITS
        ):
            stop += 1
        yield slice(start, stop)
        start = stop


def _rows_of(cache: Any, rows: Int[np.ndarray, " row"]) -> Any:
    """A cache of these rows of another one, in this order; the one given stays as it is."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in fork.layers:
        index = torch.as_tensor(rows, device=layer.keys.device)
        layer.keys, layer.values = layer.keys[index], layer.values[index]
    return fork
