"""Tokens to recover: measured where they were, extrapolated where the curve allows it, and not told where it does not."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.train.recovery import Fit, Points, Recovery, fit_curve, recovery

LEVEL = math.log(19.5)
# Healing of SmolLM2-135M with a bare loop: perplexity before training and after every 5 steps of 1,024 tokens
CURVES = {
    "control": (19.50, 17.06, 15.74, 15.28, 14.97, 14.69, 14.56),
    "drop 8": (29.61, 21.98, 19.44, 18.28, 17.71, 17.22, 16.81),
    "repeat 5:19": (24.50, 19.86, 18.05, 17.26, 16.75, 16.35, 16.14),
    "interleaved": (19.50, 16.92, 15.71, 15.20, 15.01, 14.76, 14.65),
}


def points(perplexities: tuple[float, ...]) -> list[tuple[int, float]]:
    return [(5120 * place, math.log(value)) for place, value in enumerate(perplexities)]


@pytest.mark.parametrize(("name", "least", "most"), [("drop 8", 9_800, 10_240), ("repeat 5:19", 5_600, 6_300)])
def test_the_measured_number_lies_between_two_measurements(name: str, least: int, most: int) -> None:
    found = recovery(points(CURVES[name]), LEVEL)
    assert found.tokens is not None
    assert least < found.tokens < most
    assert found.more is None
    assert str(found) == f"Back at the base's level (perplexity 19.50) after {found.tokens:,} tokens."
    assert found.results()["recovered"]
    assert found.results()["recovery_tokens"] == found.tokens


def test_a_start_at_the_level_needs_nothing() -> None:
    assert recovery(points(CURVES["interleaved"]), LEVEL).tokens == 0
    assert str(recovery([(0, 1.0)], 2.0)) == "At the base's level (perplexity 7.39) from the start."


def test_a_crossing_is_the_first_one() -> None:
    assert recovery([(0, 3.0), (100, 1.0), (200, 3.0), (300, 1.0)], 2.0).tokens == 50
    assert recovery([(0, 1.0), (100, 3.0), (200, 2.0)], 2.0).tokens == 200  # it was better, and had to come back


@pytest.mark.parametrize("held_out", [1, 2])
@pytest.mark.parametrize("name", CURVES)
def test_real_curves_are_foretold(name: str, held_out: int) -> None:
    """The level is what the run really had at the end, which the fit has not seen."""
    run = points(CURVES[name])
    end, level = run[-1]
    known = run[:-held_out]
    fit = fit_curve(known[1:], 1 / 2)
    assert fit is not None
    assert fit.loss(end) == pytest.approx(level, abs=0.01)  # 1 % of the perplexity
    found = recovery(known, level)
    needed = end - known[-1][0]
    assert found.tokens is None
    assert found.least is not None
    assert found.most is not None
    assert found.least <= needed <= found.most
    assert found.more == pytest.approx(needed, rel=0.45)


@given(
    st.floats(0.5, 3),
    st.floats(0.05, 2),
    st.floats(0.05, 2),
    st.integers(4, 20),
    st.integers(1_000, 10**12),
    st.floats(1.5, 20),
)
def test_a_curve_of_this_kind_is_found_again(
    floor: float, scale: float, shift: float, count: int, unit: int, factor: float
) -> None:
    true = Fit(floor, scale, shift, 1 / 2, unit)
    run: Points = [(0, 99.0)] + [(unit * place // count, true.loss(unit * place // count)) for place in range(1, count + 1)]
    level = true.loss(factor * unit)
    found = recovery(run, level)
    assert found.more == pytest.approx((factor - 1) * unit, rel=0.1)
    assert found.fit is not None
    assert found.fit.loss(5 * unit) == pytest.approx(true.loss(5 * unit), rel=1e-3)
    assert found.least is not None
    assert found.least <= found.more
    assert found.most is None or found.most >= found.more
    assert f"about {found.more:,} more" in str(found)


@given(st.floats(0.1, 5), st.floats(0.01, 5), st.floats(1e-3, 30), st.sampled_from([0.25, 0.5, 1.0]), st.floats(0, 1e6))
def test_a_fit_can_be_asked_both_ways(floor: float, scale: float, shift: float, exponent: float, tokens: float) -> None:
    fit = Fit(floor, scale, shift, exponent, 1000)
    assert fit.tokens(fit.loss(tokens)) == pytest.approx(tokens, rel=1e-3, abs=1)
    assert fit.tokens(floor) == math.inf


@pytest.mark.parametrize(
    ("run", "level", "reason"),
    [
        ([(0, 3.0), (100, 2.5), (200, 2.4)], 2.0, "there are 3 measurements, and a fit needs 4"),
        ([(0, 3.0), (100, 2.5), (200, 2.6), (300, 2.7), (400, 2.9)], 2.0, "the loss does not fall"),
        ([(0, 3.0), (100, 2.5), (200, 2.5), (300, 2.5), (400, 2.5)], 2.0, "the loss does not fall"),
        ([(0, 9.0), (100, 2.5), (200, 2.4), (300, 2.39), (400, 2.389)], 2.0, "levels off above it, at a perplexity of 9.56"),
        ([(100 * place, 2 + (place + 1) ** -0.5) for place in range(5)], 2.01, "100 times the tokens seen"),
    ],
)
def test_what_cannot_be_told_is_not_told(run: Points, level: float, reason: str) -> None:
    found = recovery(run, level)
    assert (found.tokens, found.more, found.least, found.most) == (None, None, None, None)
    assert reason in found.reason
    assert "cannot be told: " + found.reason in str(found)


def test_where_the_fast_curve_never_arrives_there_is_no_upper_end() -> None:
    found = recovery(points(CURVES["control"]), math.log(13.6))
    assert found.more is not None
    assert found.most is None
    assert f"(at least {found.least:,})" in str(found)


def test_results_are_plain() -> None:
    assert Recovery(1.0, 100, None, 200, 100, None).results() == {
        "recovered": False,
        "recovery_tokens": None,
        "more_tokens": 200,
        "least_more_tokens": 100,
        "most_more_tokens": None,
        "text": "Not back at the base's level (perplexity 2.72) after 100 tokens; a fit says that it takes about 200 more"
        " (at least 100).",
    }
