"""Merge models that share one architecture: a weighted average of their weights, or an interpolation on the sphere."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepen.checkpoint import Checkpoint, Tensor, open_checkpoint, resolve
from deepen.checkpoint.convert import DTYPES, FLOATS, Floats, decode, encode, read_chunks, with_dtype
from deepen.checkpoint.copy import Files, Span
from deepen.checkpoint.folder import source_facts, write_folder
from deepen.checkpoint.gguf import is_gguf
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.checkpoint.writer import Output, Write
from deepen.errors import CheckpointError, OptionError, UnsupportedModelError
from deepen.merge.alike import check_alike
from deepen.output import check_target
from deepen.units import parse_bytes

METHODS = ("average", "slerp")
_COLINEAR = 0.9995  # beyond this cosine the sine of the angle is too small to divide by


def merge(
    out: str | Path,
    models: Sequence[str | Path],
    *,
    method: str = "average",
    weights: Sequence[float] | None = None,
    t: float = 0.5,
    dtype: str = "keep",
    shard_size: str | int = "5GB",
    overwrite: bool = False,
) -> Path:
    """Merge models of one architecture into one, tensor by tensor in bounded memory.

    Sums are made in float32 (float64 if a model stores that), model after model, and rounded once to the stored type, to
    nearest even. The configuration, the tokenizer and all other files are the first model's, byte for byte.

    Args:
        out: the new folder; it appears only when it is complete.
        models: two or more checkpoint folders or Hub ids.
        method: `"average"`, or `"slerp"` (two models).
        weights: one per model for `"average"`, equal if not given. They are divided by their sum, which must be positive;
            a single one may be negative, which moves away from that model.
        t: for `"slerp"`, from 0 (the first model, bit for bit) to 1 (the second).
        dtype: `"keep"` (the first model's types), `"bfloat16"`, `"float16"` or `"float32"`.
        shard_size: the largest shard, such as `"5GB"`.
        overwrite: replace an existing `out`, when the new one is complete.

    Returns:
        The path of the output.

    Raises:
        OptionError: the options do not fit together.
        CheckpointError: a model is broken, or a result does not fit the type it is stored in.
        UnsupportedModelError: the models differ in more than their weights, or are quantised.
        OutputError: `out` exists or cannot be written.
        ResourceError: the disk is too small.
    """
    start = time.monotonic()
    portions = _portions(len(models), method, weights, t)
    if dtype.lower() not in DTYPES:
        raise OptionError(f"--dtype {dtype!r} is unknown", next=f"choose one of {', '.join(DTYPES)}")
    shard_bytes = parse_bytes(shard_size)
    if shard_bytes <= 0:
        raise OptionError(f"--shard-size {shard_size!r} is not a positive size", next="write for example 5GB")
    out = check_target(out, overwrite=overwrite)
    checkpoints = [_open(model) for model in models]
    for other in checkpoints[1:]:
        check_alike(checkpoints[0], other)

    kind = DTYPES[dtype.lower()]
    first = checkpoints[0]
    outputs = [_output([checkpoint.tensors[name] for checkpoint in checkpoints], kind, portions, t) for name in first.tensors]
    config: str | bytes = (first.path / "config.json").read_bytes()
    if kind is not None:
        config = json.dumps(with_dtype(first.config, kind), indent=2, ensure_ascii=False) + "\n"
    sources = [source_facts(checkpoint.path, str(model)) for checkpoint, model in zip(checkpoints, models, strict=True)]
    if method == "average":
        sources = [source | {"weight": portion} for source, portion in zip(sources, portions or (), strict=True)]
    own = {"weights": weights and list(weights)} if method == "average" else {"t": t}
    options = {"method": method, **own, "dtype": dtype.lower(), "shard_size": shard_size}
    facts = {
        "verb": "merge",
        "options": {key: value for key, value in options.items() if value is not None},
        "source": {"models": sources},
        "plan": _common_plan(checkpoints),
    }
    return write_folder(out, checkpoints, outputs, config, facts, start, shard_bytes=shard_bytes, overwrite=overwrite)


def weighted_sum(tensors: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Sum of weight times tensor, in order, in float32 (float64 if one of the tensors is).

    A model of weight 0 has no say, whatever its values; an overflow is infinite.

    Args:
        tensors: arrays of one shape.
        weights: one number each.
    """
    number = np.float64 if any(tensor.dtype == np.float64 for tensor in tensors) else np.float32
    total: Floats | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for tensor, weight in zip(tensors, weights, strict=True):
            if weight != 0:
                term: Floats = np.multiply(tensor.astype(number), number(weight))
                total = term if total is None else total + term
    return np.zeros(tensors[0].shape, number) if total is None else total


def slerp_weights(dot: float, norms: tuple[float, float], t: float) -> tuple[float, float]:
    """The weights of two tensors in their spherical linear interpolation.

    With the angle a between the tensors seen as vectors, sin((1 - t) a) / sin a and sin(t a) / sin a (K. Shoemake,
    "Animating rotation with quaternion curves", SIGGRAPH 1985). Where the two point the same or the opposite way (the cosine
    of a beyond 0.9995), or one is zero and so has no direction, 1 - t and t.

    Args:
        dot: the dot product of the two tensors.
        norms: their Euclidean norms.
        t: from 0 (the first) to 1 (the second).
    """
    cosine = dot / (norms[0] * norms[1]) if all(norms) else 1.0
    if abs(cosine) > _COLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _portions(count: int, method: str, weights: Sequence[float] | None, t: float) -> list[float] | None:
    """The weight of each model if it is the same for all tensors, or None."""
    if method not in METHODS:
        raise OptionError(f"--method {method!r} is unknown", next=f"choose one of {', '.join(METHODS)}")
    if count < 2:
        raise OptionError(f"a merge needs at least two models, not {count}", next="name more models after OUT")
    if method == "slerp":
        if count != 2:
            raise OptionError(f"slerp interpolates between two models, and here are {count}", next="use --method average")
        if weights is not None:
            raise OptionError("--weights is an option of --method average", next="use --t with slerp")
        if not 0 <= t <= 1:
            raise OptionError(f"--t {t} is not between 0 and 1", next="0 is the first model, 1 the second")
        return [1.0 - t, float(t)] if t in {0, 1} else None
    if t != 0.5:
        raise OptionError("--t is an option of --method slerp", next="use --weights with average")
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise OptionError(f"--weights gives {len(weights)} numbers for {count} models", next="give one weight per model")
    if not all(map(math.isfinite, weights)) or not math.fsum(weights) > 1e-6:
        shown = ",".join(map(str, weights))
        raise OptionError(f"--weights {shown} do not have a positive, finite sum", next="give shares such as 0.5,0.5")
    return [weight / math.fsum(weights) for weight in weights]


def _open(model: str | Path) -> Checkpoint:
    path = resolve(model)
    if is_gguf(path):
        raise UnsupportedModelError(
            "a GGUF file cannot be merged",
            where=model,
            next="make a checkpoint folder of it first: deepen scale … --to hf",
        )
    checkpoint = open_checkpoint(path)
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedModelError(
            "the weights are quantised and cannot be merged", where=model, next="merge the unquantised models"
        )
    return checkpoint


def _output(tensors: Sequence[Tensor], dtype: str | None, portions: Sequence[float] | None, t: float) -> Output:
    name, source = tensors[0].name, tensors[0]
    if source.dtype not in FLOATS:
        return Output(name, source, source.dtype)
    dtype = dtype or source.dtype
    used = [tensor for tensor, portion in zip(tensors, portions or (), strict=False) if portion]
    if len(used) == 1:  # its weight is 1: bytes pass as they are
        return Output(name, used[0], dtype)
    return Output(name, source, dtype, compute=partial(_blend, tensors, dtype, portions, t))


def _blend(
    tensors: Sequence[Tensor], dtype: str, portions: Sequence[float] | None, t: float, files: Files, write: Write
) -> list[str]:
    """Write the merged tensor piece by piece; returns the SHA-256 of each of its sources."""
    name = tensors[0].name
    weights = portions or _slerp_portions(tensors, t, files)
    digests = [hashlib.sha256() for _ in tensors]
    for pieces in zip(*(read_chunks(files, _span(tensor), tensor.dtype) for tensor in tensors), strict=True):
        for digest, piece in zip(digests, pieces, strict=True):
            digest.update(piece)
        values = [decode(piece, tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]
        total = weighted_sum(values, weights)
        if not np.isfinite(total).all() and not (np.isfinite(total) | ~np.isfinite(values).all(axis=0)).all():
            raise CheckpointError(f"{name} becomes infinite", next="use weights between 0 and 1")
        write(encode(total, dtype, name))
    return [digest.hexdigest() for digest in digests]


def _slerp_portions(tensors: Sequence[Tensor], t: float, files: Files) -> tuple[float, float]:
    dot = first = second = 0.0
    one, two = (read_chunks(files, _span(tensor), tensor.dtype) for tensor in tensors)
    for pieces in zip(one, two, strict=True):
        a, b = (decode(piece, tensor.dtype).astype(np.float64) for piece, tensor in zip(pieces, tensors, strict=True))
        dot, first, second = dot + float(a @ b), first + float(a @ a), second + float(b @ b)
    if not math.isfinite(dot + first + second):
        raise CheckpointError(
            f"{tensors[0].name} holds values that are not finite, so it has no direction",
            where=tensors[0].file,
            next="check the models, or use --method average",
        )
    return slerp_weights(dot, (math.sqrt(first), math.sqrt(second)), t)


def _common_plan(checkpoints: Sequence[Checkpoint]) -> dict[str, Any] | None:
    """The layer plan that all models were made with, if deepen made them so."""
    plans = [
        read_manifest(checkpoint.path)["plan"] if (checkpoint.path / MANIFEST_FILE).is_file() else None
        for checkpoint in checkpoints
    ]
    plan: dict[str, Any] | None = plans[0]
    return plan if all(each == plan for each in plans) else None


def _span(tensor: Tensor) -> Span:
    return Span(tensor.file, tensor.offset, tensor.nbytes)
