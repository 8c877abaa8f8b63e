"""Learning rates are arithmetic."""

import math

import pytest

from deepen.errors import OptionError
from deepen.train.schedule import check_schedule, learning_rate, warmup_steps


def rates(schedule: str, steps: int = 10, warmup: int = 4) -> list[float]:
    return [learning_rate(step, peak=8.0, steps=steps, warmup=warmup, schedule=schedule) for step in range(steps)]


def test_every_schedule_rises_linearly_to_the_peak() -> None:
    for schedule in ("constant", "cosine", "wsd"):
        assert rates(schedule)[:5] == [2.0, 4.0, 6.0, 8.0, 8.0]


def test_constant_stays() -> None:
    assert rates("constant")[4:] == [8.0] * 6
    assert rates("constant", warmup=0) == [8.0] * 10
    assert rates("constant", warmup=10)[-1] == 8.0


def test_cosine_is_half_way_down_in_the_middle() -> None:
    values = rates("cosine", steps=12, warmup=4)
    assert values[8] == pytest.approx(4.0)
    assert values[6] == pytest.approx(8 * 0.5 * (1 + math.sqrt(0.5)))
    assert values[11] == pytest.approx(8 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert values[4:] == sorted(values[4:], reverse=True)


def test_wsd_falls_over_the_last_tenth() -> None:
    values = rates("wsd", steps=44, warmup=4)
    assert values[4:40] == [8.0] * 36
    assert values[40:] == pytest.approx([8.0, 6.0, 4.0, 2.0])


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(OptionError, match="no schedule is called 'linear'"):
        check_schedule("linear")


@pytest.mark.parametrize(("warmup", "expected"), [(0, 0), (0.1, 3), (0.99, 30), (1, 1), (5, 5), (5.0, 5), (30, 30)])
def test_warmup_is_a_fraction_below_one_and_steps_from_one_on(warmup: float, expected: int) -> None:
    assert warmup_steps(warmup, 30) == expected


@pytest.mark.parametrize("warmup", [-1, -0.1, 1.5, 31, math.nan, math.inf])
def test_other_warmups_are_refused(warmup: float) -> None:
    with pytest.raises(OptionError, match="neither a fraction"):
        warmup_steps(warmup, 30)
