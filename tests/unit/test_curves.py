"""Curves are real pictures with something on them, in the colours and the size that they should have."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from deepen.report.curves import recovery_curve, training_curves
from deepen.train.recovery import recovery

BLUE, ORANGE, GREEN, RED = (
    tuple(int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))
    for colour in ("0072b2", "e69f00", "009e73", "c0392b")
)
POINTS = [(0, 29.61), (5120, 21.98), (10240, 19.44), (15360, 18.28), (20480, 17.71), (25600, 17.22), (30720, 16.81)]


def pixels(file: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(file)[..., :3]


def amount(image: np.ndarray, colour: tuple[float, ...]) -> int:
    return int((np.abs(image - colour).max(-1) < 0.02).sum())


def size(file: Path) -> tuple[int, int]:
    return struct.unpack(">II", file.read_bytes()[16:24])


def test_the_picture_shows_every_curve_and_the_base(tmp_path: Path) -> None:
    plain, both = tmp_path / "plain.png", tmp_path / "both.png"
    recovery_curve(plain, {"deep": POINTS})
    recovery_curve(both, {"deep": POINTS, "other": [(tokens, value - 2) for tokens, value in POINTS]}, baseline=19.5)
    assert size(plain) == size(both) == (1200, 675)
    assert amount(pixels(plain), BLUE) > 2000
    assert amount(pixels(plain), ORANGE) == amount(pixels(plain), RED) == 0
    for colour in (BLUE, ORANGE, RED):
        assert amount(pixels(both), colour) > 500
    assert (pixels(both)[:2] == 1).all()  # a light background


def test_the_moment_of_recovery_is_marked(tmp_path: Path) -> None:
    for name, at in (("not", None), ("early", 10_000), ("late", 29_000)):
        recovery_curve(tmp_path / name, {"deep": POINTS}, baseline=19.5, recovered_at=at)
    line, early, late = (amount(pixels(tmp_path / name), RED) for name in ("not", "early", "late"))
    assert min(early, late) > line + 300


def test_the_fit_goes_on_from_the_end_to_the_level(tmp_path: Path) -> None:
    found = recovery([(tokens, math.log(value)) for tokens, value in POINTS], math.log(16.0))
    dotted = found.forecast()
    assert dotted[0][0] == POINTS[-1][0]
    assert dotted[-1][1] == (min(value for _, value in dotted))
    assert abs(dotted[-1][1] - 16.0) < 1e-6
    recovery_curve(tmp_path / "with.png", {"deep": POINTS}, baseline=16.0, forecast=dotted, more_tokens=found.more)
    image = pixels(tmp_path / "with.png")
    blue = (np.abs(image - BLUE).max(-1) < 0.02)[150:]  # below the legend
    reached = np.flatnonzero(blue.any(0)) / image.shape[1]
    assert reached.max() > 0.95
    gaps = np.diff(np.flatnonzero(blue.any(0)))
    assert (gaps > 3).sum() > 20  # the dots


def test_a_forecast_stays_near_the_run() -> None:
    run = [(100 * place, 2 + (place + 1) ** -0.5) for place in range(6)]
    assert recovery(run, 2.1).forecast()[-1][0] == 3 * 500
    assert recovery(run, 1.0).forecast() == []


def test_one_point_is_enough(tmp_path: Path) -> None:
    recovery_curve(tmp_path / "one.png", {"deep": [(0, 29.61)]}, baseline=19.5)
    assert amount(pixels(tmp_path / "one.png"), RED) > 500


def test_values_far_apart_and_long_names_have_room(tmp_path: Path) -> None:
    curves = {"deep" * 20: [(tokens, value * 10) for tokens, value in POINTS[:2]] + POINTS[2:]}
    recovery_curve(tmp_path / "wide.png", curves, baseline=19.5)
    assert size(tmp_path / "wide.png") == (1200, 675)
    image = pixels(tmp_path / "wide.png")
    end, level = (np.flatnonzero((np.abs(image - colour).max(-1) < 0.02)[100:, -40:].any(1)) for colour in (BLUE, RED))
    assert end.mean() - level.mean() > 15  # a linear axis has 5 pixels for 16.81 below 19.5 where 296 is the highest


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", "$", "深い模型", "deep" * 50])
def test_every_name_is_in_the_legend(tmp_path: Path, name: str) -> None:
    recovery_curve(tmp_path / "curve.png", {name: POINTS})
    training_curves(tmp_path / "panel.png", {"loss": {name: POINTS}})
    for file in ("curve.png", "panel.png"):
        assert amount(pixels(tmp_path / file)[5:40, 100:160], BLUE) > 50


def test_panels_share_names_and_colours(tmp_path: Path) -> None:
    steps = [(tokens, math.sin(tokens)) for tokens in range(100)]
    few = [(tokens, 0.5) for tokens in range(0, 100, 20)]
    training_curves(tmp_path / "one.png", {"loss": {"learned": few}})
    training_curves(tmp_path / "two.png", {"loss": {"learned": steps, "held out": few}, "accuracy": {"held out": few}})
    assert size(tmp_path / "one.png") == (1200, 450)
    assert size(tmp_path / "two.png") == (1200, 900)
    lower = pixels(tmp_path / "two.png")[480:]
    assert amount(lower, ORANGE) > 500
    assert amount(lower, BLUE) == amount(lower, GREEN) == 0
