"""The recovery curve is a real picture with something on it."""

import struct
from pathlib import Path

import numpy as np

from deepen.report.curves import recovery_curve

BLUE, ORANGE, RED = ((0x1F / 255, 0x77 / 255, 0xB4 / 255), (1.0, 0x7F / 255, 0x0E / 255), (0xD6 / 255, 0x27 / 255, 0x28 / 255))
POINTS = [(0, 29.61), (5120, 21.98), (10240, 19.44), (15360, 18.28), (20480, 17.71), (25600, 17.22), (30720, 16.81)]


def pixels(file: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(file)[..., :3]


def has_colour(image: np.ndarray, colour: tuple[float, float, float]) -> bool:
    return bool((np.abs(image - colour).max(-1) < 0.02).sum() > 200)


def test_the_picture_shows_every_curve_and_the_base(tmp_path: Path) -> None:
    plain, both = tmp_path / "plain.png", tmp_path / "both.png"
    recovery_curve(plain, {"deep": POINTS})
    recovery_curve(both, {"deep": POINTS, "other": [(tokens, value - 2) for tokens, value in POINTS]}, baseline=19.5)
    assert struct.unpack(">II", plain.read_bytes()[16:24]) == (1200, 675)
    assert has_colour(pixels(plain), BLUE)
    assert not has_colour(pixels(plain), ORANGE)
    assert not has_colour(pixels(plain), RED)
    assert has_colour(pixels(both), BLUE)
    assert has_colour(pixels(both), ORANGE)
    assert has_colour(pixels(both), RED)


def test_one_point_is_enough(tmp_path: Path) -> None:
    recovery_curve(tmp_path / "one.png", {"deep": [(0, 29.61)]}, baseline=19.5)
    assert has_colour(pixels(tmp_path / "one.png"), RED)
