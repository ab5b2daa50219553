"""Set algebra in words, held against the same with Python's sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.app.role_expression import evaluate
from mnemoscope.models.errors import MnemoscopeError

SETS = {name: np.arange(8).reshape(2, 4) >> i & 1 == 1 for i, name in enumerate(("a", "b", "c"))}
A, B, C = SETS.values()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", A),
        ("a and not b", A & ~B),
        ("a minus b", A & ~B),
        ("a-b-c", A & ~B & ~C),
        ("a - (b - c)", A & ~(B & ~C)),
        ("a or b and c", A | (B & C)),
        ("(a or b) and c", (A | B) & C),
        ("not a or b", ~A | B),
        ("not (a or b)", ~(A | B)),
        ("NOT NOT a AND b", A & B),
        ("!a & b | c", (~A & B) | C),
        ("a\n  and\tb", A & B),
    ],
)
def test_what_binds_to_what(text: str, expected: np.ndarray) -> None:
    assert np.array_equal(evaluate(text, SETS).mask, expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no expression"),
        ("a and", "ends where a role should stand"),
        ("a b", "'b' stands where 'and' or 'or' should"),
        ("and a", "'and' stands where a role should"),
        ("(a or b", "bracket is not closed"),
        ("a)", "'\\)' stands where"),
        ("a; import os", "';' is no part"),
        ("a" + " or a" * 200, "too many"),
        ("a and d", "no role 'd' on show: use a, b, c"),
        ("__import__", "no role '__import__'"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, reason: str) -> None:
    with pytest.raises(MnemoscopeError, match=reason):
        evaluate(text, SETS)


def test_roles_asked_for_come_apart_from_those_shut_out() -> None:
    chosen = evaluate("a and not (b or not c)", SETS)
    assert chosen.names == ("a", "b", "c")
    assert chosen.wanted == ("a", "c")
    assert evaluate("a - b", SETS).wanted == ("a",)


TREES = st.recursive(
    st.sampled_from(sorted(SETS)),
    lambda inner: (
        st.tuples(st.sampled_from(["and", "or", "minus"]), inner, inner)
        | st.tuples(st.just("not"), inner)
    ),
    max_leaves=12,
)


def spelled(tree) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "not":
        return f"not ({spelled(tree[1])})"
    return f"({spelled(tree[1])}) {tree[0]} ({spelled(tree[2])})"


def computed(tree) -> set[int]:
    if isinstance(tree, str):
        return set(np.flatnonzero(SETS[tree]).tolist())
    first = computed(tree[1])
    if tree[0] == "not":
        return set(range(8)) - first
    second = computed(tree[2])
    return {"and": first & second, "or": first | second, "minus": first - second}[tree[0]]


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_expression_is_what_python_makes_of_it(tree) -> None:
    found = evaluate(spelled(tree), SETS).mask
    assert set(np.flatnonzero(found).tolist()) == computed(tree)
