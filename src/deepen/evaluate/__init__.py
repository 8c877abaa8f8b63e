"""Judge a model by numbers."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepen.checkpoint.manifest import versions
from deepen.data.text import Paths
from deepen.errors import OptionError
from deepen.evaluate.perplexity import perplexity
from deepen.units import parse_count


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        model: as it was given.
        suite: which measurements were made.
        tasks: per task its `metric`, `value`, `stderr` (None if it cannot be known), `n` and `shots`, and facts of its own.
        average: mean of the tasks' values.
        seconds: how long it took, loading included.
        energy_joules: None where it is not measured.
        versions: of the packages that shape the result.
    """

    model: str
    suite: str
    tasks: dict[str, dict[str, Any]]
    average: float
    seconds: float
    energy_joules: float | None
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `deepen evaluate --json`."""
        return asdict(self)


def evaluate(
    model: str | Path,
    *,
    data: Paths,
    suite: str = "perplexity",
    window: int = 512,
    stride: int | None = None,
    tokens: str | int | None = None,
    limit: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
) -> Report:
    """Measure how well a model predicts a text: the perplexity per token, and its standard error.

    The text is tokenised in one piece without special tokens and cut into windows; each starts with an empty context. No token
    is scored twice, and the first of the text (with disjoint windows, the first of each) not at all.

    Args:
        model: a checkpoint folder, a Hub id or a `.gguf` file, which llama.cpp runs.
        data: one or more `.txt`, `.md` or `.jsonl` files.
        suite: `perplexity`.
        window: tokens that the model sees at once.
        stride: tokens from one window to the next; by default `window`, so that they do not overlap. A smaller one gives every
            token more context, and takes `window / stride` times as long.
        tokens: only the first so many tokens of the data, such as `4096` or `100k`.
        limit: only the first so many windows.
        device: where a checkpoint runs; the CPU by default.
        dtype: what a checkpoint is computed in; its own by default.
        drop: a layer plan: the deepened model is judged without being written. So are the following.
        layers: see `deepen plan`.
        repeat: see `deepen plan`.
        expand: see `deepen plan`.
        plan: see `deepen plan`.
        identity_init: see `deepen plan`.

    Returns:
        The report; `report.tasks["perplexity"]["value"]` is the perplexity.

    Raises:
        DataError: the data is missing, empty, not UTF-8, or too short.
        OptionError: an option out of its range, or one that a GGUF file does not take.
        CheckpointError, UnsupportedModelError, PlanError: as `deepen.load`.
    """
    start = time.monotonic()
    if suite != "perplexity":
        raise OptionError(f"no suite is called {suite!r}", where="--suite", next="use perplexity")
    if limit is not None and limit < 1:
        raise OptionError(f"{limit} windows are none", where="--limit", next="use 1 or more")
    chosen = {"drop": drop, "layers": layers, "repeat": repeat, "expand": expand, "plan": plan}
    options: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    if identity_init:
        options["identity_init"] = True
    task = perplexity(
        model,
        data,
        window=window,
        stride=stride,
        tokens=None if tokens is None else parse_count(tokens),
        limit=limit,
        device=device,
        dtype=dtype,
        plan=options or None,
    )
    return Report(
        model=str(model),
        suite=suite,
        tasks={"perplexity": task},
        average=task["value"],
        seconds=round(time.monotonic() - start, 3),
        energy_joules=None,
        versions=versions(),
    )
