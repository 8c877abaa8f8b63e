"""Depthwise scaling: a plan and a base become a deeper checkpoint, byte for byte."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from deepen.checkpoint import resolve
from deepen.checkpoint.convert import DTYPES
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.errors import OptionError
from deepen.output import check_target
from deepen.plan import Plan
from deepen.scale.folder import scale_folder
from deepen.scale.gguf import scale_gguf
from deepen.units import parse_bytes


def scale(
    model: str | Path,
    out: str | Path,
    *,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | Plan | None = None,
    identity_init: bool = False,
    as_: str | None = None,
    max_position_embeddings: int | None = None,
    dtype: str = "keep",
    shard_size: str | int = "5GB",
    to: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a model deeper by copying the bytes of its layers as a plan says.

    Args:
        model: a checkpoint folder, a `.gguf` file or a Hub id.
        out: the new folder (or `.gguf` file); it appears only when it is complete.
        drop: depth up-scaling as SOLAR did it; see `deepen.plan.parse_plan` for this and the next four.
        layers: half-open slices.
        repeat: a block that runs twice, in place.
        expand: new identity blocks spread evenly.
        plan: a plan file, or a Plan.
        identity_init: let every later occurrence of a layer start as the identity.
        as_: `"llama"` turns a Mistral checkpoint into the Llama architecture.
        max_position_embeddings: context length to write with `as_` (4096 as SOLAR, if not given).
        dtype: `"keep"`, `"bfloat16"`, `"float16"` or `"float32"`; converted while streaming.
        shard_size: the largest shard, such as `"5GB"`.
        to: `"hf"` decodes a GGUF into a checkpoint folder.
        overwrite: replace an existing `out`, when the new one is complete.

    Returns:
        The path of the output.

    Raises:
        PlanError: the plan is malformed or does not fit the model.
        CheckpointError: the model is broken.
        UnsupportedModelError: the model cannot be deepened correctly; the message says why.
        OutputError: `out` exists or cannot be written.
        ResourceError: the disk is too small.
    """
    start = time.monotonic()
    if dtype.lower() not in DTYPES:
        raise OptionError(f"--dtype {dtype!r} is unknown", next=f"choose one of {', '.join(DTYPES)}")
    if as_ not in {None, "llama"}:
        raise OptionError(f"--as {as_!r} is unknown", next="choose llama")
    if to not in {None, "hf"}:
        raise OptionError(f"--to {to!r} is unknown", next="choose hf")
    if max_position_embeddings is not None and as_ is None:
        raise OptionError("--max-position-embeddings is an option of --as llama", next="add --as llama")
    shard_bytes = parse_bytes(shard_size)
    if shard_bytes <= 0:
        raise OptionError(f"--shard-size {shard_size!r} is not a positive size", next="write for example 5GB")
    out = check_target(out, overwrite=overwrite)
    plan_options: dict[str, Any] = {
        "drop": drop, "layers": layers, "repeat": repeat, "expand": expand, "plan": plan, "identity_init": identity_init,
    }  # fmt: skip
    options = {
        "drop": drop, "layers": layers, "repeat": repeat, "expand": expand,
        "plan": plan.spec if isinstance(plan, Plan) else plan and str(plan),
        "identity_init": identity_init or None, "as": as_, "max_position_embeddings": max_position_embeddings,
        "dtype": dtype.lower(), "shard_size": shard_size, "to": to,
    }  # fmt: skip
    facts = {"model": str(model), "options": {key: value for key, value in options.items() if value is not None}}
    path = resolve(model)

    if not is_gguf(path):
        if to is not None:
            raise OptionError(
                "--to hf is for GGUF files; this is a checkpoint folder already", where=model, next="leave it out"
            )
        return scale_folder(
            path, out, plan_options, facts, start,
            as_llama=as_ is not None, max_position_embeddings=max_position_embeddings,
            dtype=DTYPES[dtype.lower()], shard_bytes=shard_bytes, overwrite=overwrite,
        )  # fmt: skip
    if to == "hf":
        from deepen.scale.decode import decode_gguf

        # decoded beside the target, so that the bytes move within one file system
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.decoded-", dir=out.parent) as temporary:
            decode_gguf(path, Path(temporary), dtype=dtype.lower())
            return scale_folder(
                Path(temporary), out, plan_options, facts, start,
                as_llama=as_ is not None, max_position_embeddings=max_position_embeddings,
                dtype=None, shard_bytes=shard_bytes, overwrite=overwrite, decoded_from=path,
            )  # fmt: skip
    if as_ is not None or dtype.lower() != "keep":
        raise OptionError("a GGUF is copied as it is", where=model, next="add --to hf to use --as or --dtype")
    return scale_gguf(open_gguf(path), out, plan_options, facts, start, overwrite=overwrite)
