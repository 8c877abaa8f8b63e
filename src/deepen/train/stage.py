"""What the stages of training share: what is checked before the loop, and what is written after it."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from deepen.checkpoint import Checkpoint, open_checkpoint
from deepen.checkpoint.card import model_card
from deepen.checkpoint.copy import hash_file
from deepen.checkpoint.gguf import is_gguf
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest, write_manifest
from deepen.checkpoint.writer import copy_side_files, file_hashes, hash_tensors
from deepen.errors import CheckpointError, OptionError, UnsupportedModelError
from deepen.model import load
from deepen.output import write_file
from deepen.report.curves import recovery_curve
from deepen.train.metrics import METRICS_FILE, read_rows
from deepen.train.schedule import check_schedule
from deepen.train.state import discard_state, scratch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def check_options(options: Mapping[str, Any], above_zero: tuple[str, ...]) -> None:
    """Refuse a schedule or precision that does not exist, and numbers that are not above zero.

    Raises:
        OptionError: names the option.
    """
    check_schedule(options["schedule"])
    for name in above_zero:
        if not options[name] > 0:
            raise OptionError(
                f"{options[name]} is not above zero", where=f"--{name.replace('_', '-')}", next="give a larger one"
            )
    if options["precision"] not in {"auto", *PRECISIONS}:
        raise OptionError(f"no precision {options['precision']!r}", where="--precision", next="use auto, float32 or bfloat16")


def open_trainable(path: Path) -> Checkpoint:
    """Open a checkpoint whose weights can be trained.

    Raises:
        CheckpointError: it is broken.
        UnsupportedModelError: a GGUF file, or quantised weights.
    """
    if is_gguf(path):
        raise UnsupportedModelError(
            "a GGUF file cannot be trained",
            where=path,
            next="make a checkpoint folder of it first: deepen scale … --to hf",
        )
    checkpoint = open_checkpoint(path)
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedModelError(
            "the weights are quantised and cannot be trained", where=path, next="use the unquantised model"
        )
    return checkpoint


def disk_bytes(source: Checkpoint, *, states: int) -> int:
    """What a trained checkpoint takes on disk, and as many saved states beside it."""
    # a state holds the weights and AdamW's two moments in float32; the last good one lies beside the one being written
    tensors = source.tensors.values()
    return sum(tensor.nbytes + states * 12 * tensor.parameters for tensor in tensors)


def load_network(source: Checkpoint, device: str | None) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer.

    Raises:
        CheckpointError: it cannot be loaded, or has no tokenizer.
    """
    network, tokenizer = load(source.path, dtype="float32", device=device)
    if tokenizer is None:
        raise CheckpointError(
            "the checkpoint has no tokenizer", where=source.path, next="put its tokenizer files beside the weights"
        )
    return network, tokenizer


def choose_precision(wanted: str, network: Any) -> str:
    """What matrices are multiplied in; `auto` is bfloat16 on a GPU, float32 elsewhere."""
    if wanted == "auto":
        return "bfloat16" if network.device.type == "cuda" else "float32"
    return wanted


def weights_hash(source: Checkpoint) -> str:
    """One hash for all weights."""
    files = sorted({tensor.file for tensor in source.tensors.values()})
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()


def finish(
    folder: Path,
    network: Any,
    source: Checkpoint,
    facts: Mapping[str, Any],
    *,
    subject: str,
    curve: str,
    start: float,
    level: float | None = None,
    results: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the trained checkpoint, its curve and card, and last the manifest, whose presence says that all is there.

    Args:
        folder: the partial output, with the metrics of the finished run.
        network: the trained model; it is left in the type that it is written in.
        source: what it was made from.
        facts: of the manifest: `verb`, `options`, `source`, `settings`.
        subject: what the perplexity was measured on, a few words.
        curve: name of the picture.
        start: when the verb began, by the monotonic clock.
        level: the base's perplexity, a line in the picture.
        results: further results for the manifest.
        files: further small files, name to text; they replace the source's of the same name.
    """
    _write_checkpoint(folder, network, source)
    for name, text in (files or {}).items():
        write_file(folder / name, text)
    rows = read_rows(folder / METRICS_FILE)
    points = [(row["tokens"], row["validation_perplexity"]) for row in rows if "validation_perplexity" in row]
    recovery_curve(folder / curve, {Path(facts["source"]["model"]).name: points}, baseline=level)
    readme = source.path / "README.md"
    card = model_card(facts, readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None)
    against = "" if level is None else f"; the base has {level:.2f}"
    sentence = f"Perplexity on {subject}: {points[0][1]:.2f} before, {points[-1][1]:.2f} after {points[-1][0]:,} tokens"
    card += f"\n## Training\n\n{sentence}{against}.\n\n![{Path(curve).stem.capitalize()} curve]({curve})\n"
    write_file(folder / "README.md", card)
    tensors, headers = hash_tensors(folder)
    write_manifest(
        folder,
        **facts,
        plan=_plan_of(source.path),
        seconds=time.monotonic() - start,
        results={
            "tokens": points[-1][0],
            "training_seconds": round(sum(row.get("seconds", 0.0) for row in rows), 3),
            "validation_perplexity_before": points[0][1],
            "validation_perplexity": points[-1][1],
            **(results or {}),
        },
        files=file_hashes(folder, exclude=(*headers, MANIFEST_FILE)),
        tensors=tensors,
        shard_headers=headers,
    )
    discard_state(folder)


def _plan_of(folder: Path) -> dict[str, Any] | None:
    plan: dict[str, Any] | None = read_manifest(folder)["plan"] if (folder / MANIFEST_FILE).is_file() else None
    return plan


def _write_checkpoint(folder: Path, network: Any, source: Checkpoint) -> None:
    """The trained weights in the type that most of the source's have; all other files byte for byte as the source has them."""
    sizes: Counter[str] = Counter()
    for tensor in source.tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    network.to(_DTYPES.get(sizes.most_common(1)[0][0], torch.float32))
    saved = scratch(folder)
    disable_progress_bar()
    network.save_pretrained(saved, max_shard_size="5GB")
    for file in saved.glob("model*.safetensors*"):
        shutil.copymode(folder / METRICS_FILE, file)  # safetensors lets nobody but the owner read what it writes
        file.replace(folder / file.name)
    copy_side_files(source.path, (Path("config.json"), *source.side_files), folder)
