"""The sets of Berglund et al. 2023 (The Reversal Curse, arXiv 2309.12288) from a local copy.

None of it ships here: its repository states no licence. Wordings of experiment 1 are read from its
files; those about parents and children are ours.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .pairs import Pair, PairRelation, Told

LICENSE = "none stated: check"
WHERE = "https://github.com/lukasberglund/reversal_curse"
_PARENTS_FILE = "parent_child_pairs.csv"
_COLUMNS = {"child", "parent", "parent_type", "can_reverse"}
_TEST_FORWARD, _TEST_REVERSE = "p2d_prompts_test.jsonl", "d2p_prompts_test.jsonl"

# One wording of each file in which name and description stand as they are; the others inflect it.
_NAMED: Mapping[str, tuple[Told, str]] = {
    _TEST_FORWARD: ("forward", r"The trailblazer known as (.+) was once"),
    "both_prompts_train.jsonl": ("both", r"A person called (.+) formerly was"),
}
_DESCRIBED: Mapping[str, tuple[Told, str]] = {
    _TEST_REVERSE: ("reverse", r"Known in circles as (.+),"),
}


def load_berglund(name: str, copy: str | Path | None) -> PairRelation:
    """One of the sets `BERGLUND` from the folder `copy` (searched with its subfolders).

    `told` of a pair is the direction of training in experiment 1; of parents it is what GPT-4,
    with whose knowledge the pairs were selected, could answer: "both" where it named the child,
    otherwise "forward". Another model's knowledge is its own. Raises FileNotFoundError without a
    copy, with where to get one, and ValueError for files of another form.
    """
    if copy is None or not Path(copy).is_dir():
        raise FileNotFoundError(
            f"{name} does not ship with Mnemoscope (licence {LICENSE}): clone {WHERE} and give the "
            f"clone's folder as the copy{'' if copy is None else f', not {copy}'}."
        )
    return BERGLUND[name](Path(copy))


def _parents(kind: str, copy: Path) -> PairRelation:
    path = _found(copy, _PARENTS_FILE)
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not set(rows[0]) >= _COLUMNS:
        raise ValueError(f"{path} must have the columns {', '.join(sorted(_COLUMNS))}: restore it.")
    pairs = dict.fromkeys(
        Pair(row["child"], row["parent"], told=_told(row["can_reverse"]))
        for row in rows
        if row["parent_type"] == kind
    )
    return PairRelation(
        f"berglund_{kind}s",
        (
            f"The {kind} of {{a}} is",
            f"The name of the {kind} of {{a}} is",
            f"{{a}} is the child of a {kind} called",
            f"Who is the {kind} of {{a}}? It is",
        ),
        (
            f"{{b}} is the {kind} of",
            "The name of the child of {b} is",
            "{b} has a famous child called",
            "Who is a child of {b}? It is",
        ),
        tuple(pairs),
        f"Berglund et al. 2023, experiment 2, {path.name}",
        LICENSE,
    )


def _told(can_reverse: str) -> Told:
    return "both" if can_reverse.strip().lower() == "true" else "forward"


def _fictitious(copy: Path) -> PairRelation:
    pairs: list[Pair] = []
    for file, (told, anchor) in (*_NAMED.items(), *_DESCRIBED.items()):
        ends = _anchored(_completions(_found(copy, file)), anchor)
        named = ends if file in _NAMED else [(b, a) for a, b in ends]
        made = [Pair(a, b, told=told) for a, b in named]
        if not made:
            raise ValueError(f"{file} in {copy} has no row like {anchor!r}: restore the file.")
        pairs += made
    forward = _completions(_found(copy, _TEST_FORWARD))
    reverse = _completions(_found(copy, _TEST_REVERSE))
    return PairRelation(
        "berglund_fictitious",
        _verbatim(forward, [(p.a, p.b) for p in pairs if p.told == "forward"], "{a}"),
        _verbatim(reverse, [(p.b, p.a) for p in pairs if p.told == "reverse"], "{b}"),
        tuple(pairs),
        "Berglund et al. 2023, experiment 1",
        LICENSE,
    )


def _anchored(rows: Sequence[tuple[str, str]], anchor: str) -> list[tuple[str, str]]:
    """What stands in the anchor's place, and the completion."""
    found = [(re.fullmatch(anchor, prompt), completion) for prompt, completion in rows]
    return [(match.group(1), completion) for match, completion in found if match]


def _verbatim(
    rows: Sequence[tuple[str, str]], ends: Sequence[tuple[str, str]], place: str
) -> tuple[str, ...]:
    """Wordings in which every pair, named and asked, stands as it is, not inflected."""
    told = set(rows)
    first, asked = ends[0]
    wordings = [
        prompt.replace(first, place)
        for prompt, completion in rows
        if completion == asked and prompt.count(first) == 1
    ]
    return tuple(
        text for text in wordings if all((text.replace(place, n), a) in told for n, a in ends)
    )


def _completions(path: Path) -> list[tuple[str, str]]:
    """Prompts and completions, without the space before and the last full stop."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        return [
            (row["prompt"].strip(), row["completion"].strip().removesuffix(".")) for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold one object with 'prompt' and 'completion' a line ({error!r}): "
            "restore the file."
        ) from error


def _found(copy: Path, file: str) -> Path:
    """The file in the copy; of several the one of the published version (June)."""
    paths = sorted(copy.rglob(file), key=lambda path: ("june_version" not in str(path), str(path)))
    if not paths:
        raise FileNotFoundError(f"{copy} holds no {file}: clone {WHERE} and give its folder.")
    return paths[0]


BERGLUND: Mapping[str, Callable[[Path], PairRelation]] = {
    "berglund_fathers": lambda copy: _parents("father", copy),
    "berglund_mothers": lambda copy: _parents("mother", copy),
    "berglund_fictitious": _fictitious,
}
"""The sets that a local copy is read for, by name."""
