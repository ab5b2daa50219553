"""AP of every unit: scikit-learn's numbers, one sort for all columns, memory that is bounded."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.average_precision import AveragePrecision, auroc, average_precision
from sklearn import metrics
from torch import Tensor

UNITS, PROMPTS = 7, 240
CLOSE = 1e-9


def shuffled(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relations(prompts: int = PROMPTS, n: int = 12) -> Tensor:
    """Every prompt is positive in one of the columns."""
    return torch.arange(n)[:, None] == torch.arange(prompts) % n


def inputs(kind: str) -> Tensor:
    x = torch.randn(UNITS, PROMPTS, generator=shuffled())
    zeros = torch.zeros(UNITS, PROMPTS)
    zeros[:, ::3] = -0.0
    zeros[:, ::5] = 1.0
    return {
        "continuous": x,
        "one decimal": x.round(decimals=1),
        "integers": x.round(),
        "constant": torch.full_like(x, 0.3),
        "signed zeros": zeros,
        "double": x.double(),
        "infinite": torch.where(x > 1, torch.inf, x),
    }[kind]


KINDS = ("continuous", "one decimal", "integers", "constant", "signed zeros", "double", "infinite")


def rank_form(scores: Tensor, positive: Tensor, member: Tensor) -> Tensor:
    """The definition: mean over positives of TP(>= s) / n(>= s)."""
    rows = []
    for column, among in zip(positive, member, strict=True):
        s, y = scores[:, among], column[among]
        reach = s[:, None, :] >= s[:, y][:, :, None]  # unit, positive, member
        rows.append((reach[..., y].sum(-1).double() / reach.sum(-1)).mean(-1))
    return torch.stack(rows)


def masked(positive: Tensor) -> Tensor:
    """Member sets of three kinds; all hold some of each column's positives."""
    some = torch.rand(2, positive.shape[1], generator=shuffled(3)) < 0.6
    sets = torch.stack([torch.ones_like(some[0]), *some])
    return sets[torch.arange(len(positive)) % 3]


def assert_same(a: AveragePrecision, b: AveragePrecision) -> None:
    assert torch.equal(a.above, b.above)
    assert torch.equal(a.below, b.below)


@pytest.mark.parametrize("with_members", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_rank_form_for_both_signs(kind: str, with_members: bool) -> None:
    scores, positive = inputs(kind), relations()
    member = masked(positive) if with_members else torch.ones_like(positive)
    got = average_precision(scores, positive, member if with_members else None)
    assert got.above.dtype == torch.float64
    for sign, ap in ((1, got.above), (-1, got.below)):
        want = rank_form(sign * scores, positive & member, member)
        torch.testing.assert_close(ap, want, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "infinite"])
def test_it_is_what_scikit_learn_computes_unit_by_unit(kind: str) -> None:
    scores, positive = inputs(kind), relations()
    member = masked(positive)
    got, area = average_precision(scores, positive, member), auroc(scores, positive, member)
    for c in range(len(positive)):
        y = positive[c, member[c]].numpy()
        for u in range(UNITS):
            s = scores[u, member[c]].numpy()
            above = metrics.average_precision_score(y, s)
            below = metrics.average_precision_score(y, -s)
            assert float(got.above[c, u]) == pytest.approx(above, abs=CLOSE)
            assert float(got.below[c, u]) == pytest.approx(below, abs=CLOSE)
            assert float(area[c, u]) == pytest.approx(metrics.roc_auc_score(y, s), abs=CLOSE)


def test_a_perfect_detector_scores_one_exactly_and_its_mirror_the_floor() -> None:
    p, n = 60, 720
    scores = torch.arange(n, 0, -1.0)[None]
    positive = (torch.arange(n) < p)[None]
    got = average_precision(scores, positive)
    assert float(got.above) == 1.0
    floor = sum(i / (n - p + i) for i in range(1, p + 1)) / p
    assert float(got.below) == pytest.approx(floor, abs=CLOSE)
    assert float(auroc(scores, positive)) == 1.0
    assert float(auroc(-scores, positive)) == 0.0


def test_a_constant_unit_scores_the_base_rate() -> None:
    got = average_precision(torch.zeros(1, 50), (torch.arange(50) < 10)[None])
    assert float(got.above) == float(got.below) == pytest.approx(0.2, abs=1e-15)


def test_half_precision_scores_count_as_what_they_are() -> None:
    scores = inputs("continuous").bfloat16()
    assert_same(
        average_precision(scores, relations()), average_precision(scores.float(), relations())
    )


@pytest.mark.parametrize("kind", ["continuous", "one decimal"])
def test_no_bit_depends_on_the_chunk(kind: str) -> None:
    scores, positive = inputs(kind), relations()
    columns = torch.cat([positive, positive, positive.roll(1, 0) | positive])
    member = torch.cat([torch.ones_like(positive), masked(positive), masked(positive)])
    whole = average_precision(scores, columns, member)
    one_unit = 64 * PROMPTS + 96 * PROMPTS
    assert_same(average_precision(scores, columns, member, memory_bytes=one_unit), whole)
    for u in range(UNITS):
        alone = average_precision(scores[u : u + 1], columns, member)
        assert torch.equal(alone.above[:, 0], whole.above[:, u])
    for c in (0, 13, 30):
        single = average_precision(scores, columns[c : c + 1], member[c : c + 1])
        assert torch.equal(single.below[0], whole.below[c])


def test_one_tied_unit_changes_no_bit_of_its_neighbours() -> None:
    scores = inputs("continuous")
    tied = torch.cat([scores, torch.zeros(1, PROMPTS)])
    whole = average_precision(tied, relations())
    assert torch.equal(whole.above[:, :-1], average_precision(scores, relations()).above)


def test_positives_outside_the_members_do_not_count() -> None:
    scores, positive = inputs("one decimal"), relations()
    member = masked(positive)
    assert_same(
        average_precision(scores, positive, member),
        average_precision(scores, positive & member, member),
    )


def test_no_units_or_no_columns_give_an_empty_result() -> None:
    assert average_precision(torch.zeros(0, 12), relations(12)).above.shape == (12, 0)
    assert average_precision(torch.zeros(3, 12), relations(12)[:0]).above.shape == (0, 3)


def test_nan_is_refused_by_unit() -> None:
    scores = inputs("continuous")
    scores[4, 17] = torch.nan
    with pytest.raises(MnemoscopeError, match="unit 4 hold NaN"):
        average_precision(scores, relations())


def test_what_cannot_be_scored_is_refused() -> None:
    scores, positive = inputs("continuous"), relations()
    with pytest.raises(MnemoscopeError, match="column 1 has no positive"):
        average_precision(scores, positive & (torch.arange(12) != 1)[:, None])
    with pytest.raises(MnemoscopeError, match="column 2 has no positive among its members"):
        average_precision(scores, positive, positive ^ (torch.arange(12) == 2)[:, None])
    with pytest.raises(MnemoscopeError, match="positive must be bool"):
        average_precision(scores, positive.float())
    with pytest.raises(MnemoscopeError, match="member must be bool"):
        average_precision(scores, positive, positive[:3])
    with pytest.raises(MnemoscopeError, match="floating point"):
        average_precision(scores.long(), positive)
    with pytest.raises(MnemoscopeError, match="allow at least"):
        average_precision(scores, positive, memory_bytes=100)
    with pytest.raises(MnemoscopeError, match="AUROC needs a negative"):
        auroc(scores, torch.ones_like(positive))


MEASURED = """
import ctypes, gc, sys
from pathlib import Path
import torch
from mnemoscope.probes import average_precision as engine

def status_bytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

units, prompts, bound = 2000, 2048, 2**24
random = torch.Generator().manual_seed(0)
scores = torch.randn(units, prompts, generator=random)
scores = scores.round(decimals=1) if sys.argv[1] == "ties" else scores
positive = torch.rand(12, prompts, generator=random) < 1 / 12
engine._CACHED = 2**40  # let the bound alone decide the chunks
engine.average_precision(scores[:2], positive)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = status_bytes("VmRSS")
engine.average_precision(scores, positive, memory_bytes=bound)
print((status_bytes("VmHWM") - before) / bound)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from /proc"
)
@pytest.mark.parametrize("ties", ["ties", "none"])
def test_the_working_memory_stays_below_the_bound(ties: str) -> None:
    """One pass over all units at once would take some 60 bytes a score: 15 times the bound. In a
    process of its own: what other tests left in this one would be counted."""
    command = [sys.executable, "-c", MEASURED, ties]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 0.1 < float(found.stdout) < 1.1  # a tenth for the pages of the allocator itself


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_computes_the_same_bits(kind: str) -> None:
    scores, positive = inputs(kind), relations()
    member = masked(positive)
    on_cpu = average_precision(scores, positive, member)
    assert_same(average_precision(scores.cuda(), positive, member), on_cpu)
    areas = auroc(scores.cuda(), positive.cuda(), member.cuda())
    np.testing.assert_array_equal(areas.numpy(), auroc(scores, positive, member).numpy())
