"""Which numbers follow from facts `e1 + e2 = e3`, exactly, and after how many steps.

In waves first: a fact of which two numbers are known gives the third, and everything that follows
at once is one wave. What is left is solved by elimination modulo a prime, so that nothing that is
determined is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ..models.errors import MnemoscopeError

_SIGNS = np.array([1, 1, -1])


@dataclass(frozen=True, eq=False)
class Solution:
    """Every entity's number, and the wave that gave it: 0 for what was known, -1 undetermined.

    `chained` says how many waves there were; a later wave is of what only elimination gives.
    """

    values: Int[np.ndarray, " entity"]
    waves: Int[np.ndarray, " entity"]
    chained: int

    @property
    def solved(self) -> Bool[np.ndarray, " entity"]:
        """Which numbers are determined."""
        return self.waves >= 0


def solve(
    facts: Int[np.ndarray, "fact 3"], known: Int[np.ndarray, " entity"], modulus: int
) -> Solution:
    """Everything that follows from the facts and the known numbers (-1 where unknown).

    Raises `MnemoscopeError` for facts that contradict each other, or where elimination is needed
    and the modulus is no prime.
    """
    values, waves = known.copy(), np.where(known < 0, -1, 0)
    wave = 0
    while True:
        missing = values[facts] < 0
        ready = missing.sum(axis=1) == 1
        if not ready.any():
            break
        wave += 1
        column = missing[ready].argmax(axis=1)
        entity = facts[ready, column]
        # The two known terms, with the sign that brings the unknown one to the other side.
        rest = (np.where(missing[ready], 0, values[facts[ready]]) * _SIGNS).sum(axis=1)
        values[entity], waves[entity] = -rest * _SIGNS[column] % modulus, wave
    _check(facts, values, modulus)
    left = facts[(values[facts] < 0).any(axis=1)]
    if len(left):
        entity, value = _eliminated(left, values, modulus)
        values[entity], waves[entity] = value, wave + 1
    return Solution(values, waves, wave)


def _check(
    facts: Int[np.ndarray, "fact 3"], values: Int[np.ndarray, " entity"], modulus: int
) -> None:
    whole = facts[(values[facts] >= 0).all(axis=1)]
    wrong = (values[whole] * _SIGNS).sum(axis=1) % modulus != 0
    if wrong.any():
        raise MnemoscopeError(
            f"the facts contradict each other, for example at {whole[wrong][0].tolist()}: check "
            "the facts and the known numbers."
        )


def _eliminated(
    facts: Int[np.ndarray, "fact 3"], values: Int[np.ndarray, " entity"], modulus: int
) -> tuple[Int[np.ndarray, " entity"], Int[np.ndarray, " entity"]]:
    """Entities that the system as a whole determines, and their numbers.

    The reduced echelon form: an unknown is determined where its row has no other unknown in it.
    Memory: facts times unknowns, 8 bytes each.
    """
    if not _is_prime(modulus):
        raise MnemoscopeError(
            f"facts that no chain solves need a prime modulus, which {modulus} is not."
        )
    entities, column = np.unique(facts[values[facts] < 0], return_inverse=True)
    n = len(entities)
    matrix = np.zeros((len(facts), n + 1), dtype=np.int64)
    signs = np.broadcast_to(_SIGNS, facts.shape)
    unknown = values[facts] < 0
    np.add.at(matrix, (np.nonzero(unknown)[0], column), signs[unknown])
    matrix[:, n] = -np.where(unknown, 0, values[facts] * signs).sum(axis=1)
    pivots = _reduce(matrix, modulus)
    if matrix[len(pivots) :, n].any():
        raise MnemoscopeError("the facts contradict each other: they have no solution together.")
    alone = np.count_nonzero(matrix[: len(pivots), :n], axis=1) == 1
    return entities[np.array(pivots, dtype=int)[alone]], matrix[: len(pivots), n][alone]


def _reduce(matrix: Int[np.ndarray, "fact unknown1"], modulus: int) -> list[int]:
    """Bring the matrix into reduced echelon form, in place; the pivots' columns."""
    matrix %= modulus
    pivots: list[int] = []
    for column in range(matrix.shape[1] - 1):
        row = len(pivots)
        below = np.flatnonzero(matrix[row:, column])
        if not len(below):
            continue
        swap = [row, row + int(below[0])]
        matrix[swap] = matrix[swap[::-1]]
        matrix[row] = matrix[row] * pow(int(matrix[row, column]), -1, modulus) % modulus
        factor = matrix[:, column].copy()
        factor[row] = 0
        hit = np.flatnonzero(factor)
        matrix[hit] = (matrix[hit] - factor[hit, None] * matrix[row]) % modulus
        pivots.append(column)
    return pivots


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
