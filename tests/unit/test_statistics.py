"""Intervals hold the true value 95 times in 100; differences are those of pairs; a model is never better than itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import DataError
from deepen.evaluate.statistics import mean_interval, paired_difference, ratio_interval


def covered(draw, truth, estimate, draws=1000):
    found = [estimate(draw()) for _ in range(draws)]
    return sum(each.low <= truth <= each.high for each in found) / draws


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("rows", [50, 200])
def test_a_share_lies_in_its_interval(rows: int, share: float) -> None:
    """Exactly, over every count, with scipy's binomial: no simulation needed."""
    from scipy.stats import binom

    held = []
    for count in range(rows + 1):
        _, _, low, high = mean_interval(np.arange(rows) < count)
        held.append(low <= share <= high)
    assert 0.93 <= binom.pmf(np.arange(rows + 1), rows, share)[held].sum() <= 0.97


@pytest.mark.parametrize("kind", ["normal", "exponential", "lognormal", "beta"])
def test_a_skewed_mean_lies_in_its_interval(kind: str) -> None:
    rng = np.random.default_rng(1)
    draws = {
        "normal": (lambda: rng.normal(0, 1, 50), 0.0),
        "exponential": (lambda: rng.exponential(1, 50), 1.0),
        "lognormal": (lambda: rng.lognormal(0, 0.75, 50), math.exp(0.75**2 / 2)),
        "beta": (lambda: rng.beta(0.3, 0.5, 50), 0.375),
    }
    assert 0.93 <= covered(*draws[kind], mean_interval) <= 0.97


def test_a_ratio_over_unequal_documents_lies_in_its_interval() -> None:
    rng = np.random.default_rng(2)

    def draw():
        tokens = rng.integers(50, 1000, 60)
        return tokens * rng.normal(3, 0.5, 60), tokens

    assert 0.93 <= covered(draw, 3.0, lambda drawn: ratio_interval(*drawn)) <= 0.97


def test_the_plain_mean_of_strata_lies_in_its_interval() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(5, 30, 57)
    shares = rng.uniform(0.1, 0.9, 57)
    strata = np.repeat(np.arange(57), sizes).tolist()
    chance = np.repeat(shares, sizes)
    assert (
        0.93
        <= covered(lambda: rng.random(len(chance)) < chance, shares.mean(), lambda x: mean_interval(x, strata=strata))
        <= 0.97
    )


@pytest.mark.parametrize(("only_first", "only_second"), [(0.1, 0.1), (0.05, 0.15), (0.02, 0.1), (0.2, 0.2)])
def test_a_difference_of_pairs_lies_in_its_interval(only_first: float, only_second: float) -> None:
    rng = np.random.default_rng(4)

    def draw():
        kind = rng.choice(3, 100, p=[only_first, only_second, 1 - only_first - only_second])
        both = rng.random(100) < 0.5
        return np.where(kind == 2, both, kind == 0), np.where(kind == 2, both, kind == 1)

    assert 0.93 <= covered(draw, only_first - only_second, lambda pair: paired_difference(*pair)) <= 0.97


def test_of_two_equal_models_few_are_called_better() -> None:
    rng = np.random.default_rng(5)
    verdicts = [paired_difference(*(rng.random((2, 60)) < 0.5)).verdict for _ in range(500)]
    assert verdicts.count("cannot tell") >= 0.93 * 500


def test_a_plain_mean_of_strata_by_hand() -> None:
    """Means 1/2 and 1, so 3/4; the first has variance 1/2 / 2 = 1/4, the second 0: sqrt(1/4) / 2 = 1/4."""
    found = mean_interval([1, 0, 1, 1, 1, 1], strata=["a", "a", "b", "b", "b", "b"])
    assert found[:2] == (0.75, 0.25)
    assert 0 < found.low < 0.75 < found.high <= 1


def test_the_error_of_a_ratio_by_hand() -> None:
    """Totals 3 and 6 of 2 and 1: ratio 3, residuals -3 and 3, so sqrt(2 / 1 · 18) / 3 = 2; t(1) is 12.706."""
    found = ratio_interval([3, 6], [2, 1])
    assert found == pytest.approx((3, 2, 3 - 2 * 12.706, 3 + 2 * 12.706))
    assert ratio_interval([3], [2]) == (1.5, None, None, None)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.booleans())
def test_a_model_is_not_better_than_itself(scores: list[float], binary: bool) -> None:
    scores = [float(each > 0) for each in scores] if binary else scores
    found = paired_difference(scores, scores)
    assert (found.difference, found.verdict) == (0, "cannot tell")
    assert found.p in (None, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_pairs_read_the_other_way_say_the_opposite(pairs: list[tuple[bool, bool]]) -> None:
    first, second = zip(*pairs, strict=True)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one.p == other.p
    opposite = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
    assert one.verdict == opposite[other.verdict] == paired_difference(second, first, higher_is_better=False).verdict


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 17), (8, 2), (40, 70)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    from scipy.stats import binomtest

    first = [1] * gained + [0] * lost + [1, 0]
    second = [0] * gained + [1] * lost + [1, 0]
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert paired_difference(first, second).p == pytest.approx(expected, rel=1e-9)


def test_a_loss_that_is_lower_is_better() -> None:
    rng = np.random.default_rng(6)
    base = rng.normal(3, 1, 40)
    worse = base + rng.normal(0.3, 0.1, 40)
    assert paired_difference(worse, base, higher_is_better=False).verdict == "worse"
    assert paired_difference(worse, base, counts=np.full(40, 2), higher_is_better=False).difference == pytest.approx(
        (worse - base).mean() / 2
    )


def test_pairs_in_strata_count_each_stratum_once() -> None:
    """Of stratum a one row of 1 is gained, of b none of 9: the plain mean is 1/2, not 1/10."""
    assert paired_difference([1] * 10, [0] + [1] * 9, strata=["a"] + ["b"] * 9).difference == 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(7).lognormal(0, 1, 30)
    assert mean_interval(scores) == mean_interval(scores)
    assert mean_interval(scores, seed=1) != mean_interval(scores)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_nothing(scores: list[float]) -> None:
    with pytest.raises(DataError, match=r"no scores|not finite"):
        mean_interval(scores)
    with pytest.raises(DataError, match="1 scores against 2"):
        paired_difference([1], [1, 2])
