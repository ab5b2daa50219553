"""The ways of asking for one relation: four families of prompts, and which of them find or judge.

With one wording a relation cannot be told from its words ("headquartered", "constellation") or from
the mode of answering. So every relation is asked in several wordings of several families; the ones
that find units (`DETECTION`) and the ones that judge them (`EVALUATION`) share no sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .items import Relation

Family = Literal["cloze", "answer", "question", "instruction"]

DETECTION: tuple[str, ...] = ("cloze 0", "cloze 1", "answer 0", "answer 1", "question 0")
EVALUATION: tuple[str, ...] = ("cloze 2", "answer 2", "instruction 0")

# The order goes before the template that EVALUATION keeps for itself: around the question it would
# share its words with "question 0".
_ORDER = "Finish the sentence in as few words as possible.\n"
_HELD_OUT_TEMPLATE = 2


@dataclass(frozen=True)
class Wording:
    """One way of asking; `template` holds `{s}` once and ends right before the object.

    Raises ValueError for a template without `{s}` or with more than one.
    """

    name: str
    family: Family
    template: str

    def __post_init__(self) -> None:
        if self.template.count("{s}") != 1:
            raise ValueError(
                f"the wording {self.name!r} has the template {self.template!r}: "
                "write {s} in it exactly once."
            )

    def prompt(self, subject: str) -> str:
        """The unfinished text about `subject`, without a space at its end."""
        return self.template.replace("{s}", subject)

    def subject_span(self, subject: str) -> tuple[int, int]:
        """Where the subject stands in `prompt(subject)`: first character, one after the last."""
        start = self.template.index("{s}")
        return start, start + len(subject)


def wordings(relation: Relation) -> tuple[Wording, ...]:
    """Every wording that the relation's templates and question allow, family by family.

    "cloze i" is template i; "answer i" the same with "? Answer:" behind it (Liu et al. 2025,
    section 3); "question 0" the relation's question with " Answer:"; "instruction 0" an order
    before template 2. A relation without a question, or with fewer than three templates, has
    fewer wordings. Raises ValueError for a template that does not hold `{s}` exactly once.
    """
    made = [Wording(f"cloze {i}", "cloze", text) for i, text in enumerate(relation.templates)]
    made += [
        Wording(f"answer {i}", "answer", f"{text.rstrip(' ,:?')}? Answer:")
        for i, text in enumerate(relation.templates)
    ]
    if relation.question:
        made.append(Wording("question 0", "question", f"{relation.question} Answer:"))
    if len(relation.templates) > _HELD_OUT_TEMPLATE:
        text = _ORDER + relation.templates[_HELD_OUT_TEMPLATE]
        made.append(Wording("instruction 0", "instruction", text))
    return tuple(made)
