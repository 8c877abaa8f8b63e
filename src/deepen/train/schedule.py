"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from deepen.errors import OptionError

_DECAY = 0.1  # the part of a WSD run in which the rate falls: enough, after Hu et al. 2024 (MiniCPM, arXiv:2404.06395)

# From the part of the run after the warm-up that is done (0 ≤ part < 1) to the part of the peak rate
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda part: 1.0,  # noqa: ARG005
    "cosine": lambda part: 0.5 * (1 + math.cos(math.pi * part)),
    "wsd": lambda part: min(1.0, (1 - part) / _DECAY),
}


def learning_rate(step: int, *, peak: float, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of a step.

    It rises linearly and reaches the peak in the last step of the warm-up; then it stays (`constant`), falls towards zero along
    half a cosine (`cosine`), or stays and falls linearly towards zero over the last tenth (`wsd`: warm-up, stable, decay).

    Args:
        step: zero-based.
        peak: the highest rate.
        steps: of the whole run.
        warmup: steps of warm-up.
        schedule: `constant`, `cosine` or `wsd`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * _SHAPES[schedule]((step - warmup) / (steps - warmup))


def check_schedule(schedule: str) -> None:
    """Refuse a schedule that does not exist.

    Raises:
        OptionError: `schedule` is not one of the names above.
    """
    if schedule not in _SHAPES:
        raise OptionError(f"no schedule is called {schedule!r}", where="--schedule", next=f"choose one of {', '.join(_SHAPES)}")


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of warm-up: a value below 1 is a fraction of the run (rounded), any other a number of steps.

    Raises:
        OptionError: negative, not whole, or longer than the run.
    """
    wanted = round(warmup * steps) if 0 <= warmup < 1 else warmup
    if not 0 <= wanted <= steps or wanted != int(wanted):
        raise OptionError(
            f"{warmup:g} is neither a fraction below 1 nor a number of steps up to {steps}",
            where="--warmup",
            next="write 0.1 for a tenth of the run, or 5 for five steps",
        )
    return int(wanted)
