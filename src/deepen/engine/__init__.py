"""Engines, which run a model: `llamacpp` for GGUF files, in a child process, and `transformers` for folders, in this one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.checkpoint import resolve
from deepen.engine.protocol import Chunk, Engine, FinishReason, Message
from deepen.errors import OptionError

__all__ = ["ENGINES", "Chunk", "Engine", "FinishReason", "Message", "open_engine"]

ENGINES = ("auto", "llamacpp", "transformers")


def open_engine(
    model: str | Path,
    *,
    engine: str = "auto",
    plan: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    context: int | None = None,
) -> Engine:
    """Load a model into the engine that suits it, and say on stderr which that is and why.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file.
        engine: `llamacpp`, `transformers`, or `auto` to choose.
        plan: plan options (`drop`, `layers`, …): the deepened model runs without being written.
        device: where `transformers` puts the model, such as `cpu` or `cuda:0`.
        dtype: the dtype that `transformers` computes in, such as `float32`.
        context: hold at most so many tokens (`llamacpp`; default: the model's context, at most 8192).

    Raises:
        OptionError: an unknown engine, or llamacpp asked to run a checkpoint folder, a layer plan, a device or a dtype.
        CheckpointError: the model is missing or broken.
        MissingDependencyError: the engine is not installed.
    """
    if engine not in ENGINES:
        raise OptionError(f"{engine!r} is not an engine", where="--engine", next=f"use one of {', '.join(ENGINES)}")
    path = resolve(model)
    gguf = path.is_file()
    chosen = ("llamacpp" if gguf else "transformers") if engine == "auto" else engine
    if chosen == "llamacpp":
        if not gguf:
            raise OptionError(
                f"the engine llamacpp runs GGUF files, but {model} is a checkpoint folder",
                where="--engine",
                next=f"use --engine transformers, or write a GGUF first: deepen export {model} OUT.gguf",
            )
        if plan:
            raise OptionError(
                f"the engine llamacpp cannot apply a layer plan (--{next(iter(plan)).replace('_', '-')}) while it runs",
                where="--engine",
                next=f"use --engine transformers, or write the deepened model first: deepen scale {model} OUT.gguf …",
            )
        if device is not None or dtype is not None:
            option = "--device" if device is not None else "--dtype"
            raise OptionError(
                f"{option} does not apply to a GGUF, which brings its own number format and runs where llama.cpp was built for",
                where=option,
                next=f"leave {option} away",
            )
        from deepen.engine.llamacpp import LlamacppEngine

        _say(chosen, "a GGUF file" if engine == "auto" else "asked for")
        return LlamacppEngine(path, context=context)
    from deepen.engine.transformers import TransformersEngine

    _say(chosen, "asked for" if engine != "auto" else "a layer plan over shared weights" if plan else "a checkpoint folder")
    return TransformersEngine(model, plan=plan, device=device, dtype=dtype)


def _say(engine: str, reason: str) -> None:
    print(f"Engine: {engine} ({reason})", file=sys.stderr)
