"""The command that serves a model with vLLM, which lives in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deepen.checkpoint import resolve
from deepen.doctor import doctor
from deepen.errors import UnsupportedModelError


def vllm_command(
    model: str | Path, *, host: str, port: int, keys: Sequence[str], context: int | None, parallel: int | None
) -> list[str]:
    """The words of `vllm serve` for a checkpoint, spread over all GPUs of this machine.

    Raises:
        UnsupportedModelError: a GGUF, which vLLM does not run by itself.
    """
    path = resolve(model)
    if path.is_file():
        raise UnsupportedModelError(
            "vLLM serves checkpoint folders, not GGUF files",
            where=path,
            next="give the checkpoint, or serve the GGUF with --engine llamacpp",
        )
    words = ["vllm", "serve", str(path), "--served-model-name", Path(str(model)).resolve().name]
    words += ["--host", host, "--port", str(port)]
    gpus = len(doctor()["gpus"])
    words += ["--tensor-parallel-size", str(_divisor(path, gpus))] if gpus > 1 else []
    template = path / "chat_template.jinja"
    words += ["--chat-template", str(template)] if template.is_file() else []
    words += ["--max-model-len", str(context)] if context else []
    words += ["--max-num-seqs", str(parallel)] if parallel else []
    return [*words, *(["--api-key", *keys] if keys else [])]


def _divisor(path: Path, gpus: int) -> int:
    """The most GPUs that the attention heads can be spread over evenly."""
    heads = json.loads((path / "config.json").read_text(encoding="utf-8")).get("num_attention_heads", gpus)
    return next(count for count in range(gpus, 0, -1) if heads % count == 0)
