"""Continued pretraining on text: what heals a seam."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from deepen.checkpoint import Checkpoint, open_checkpoint, resolve
from deepen.checkpoint.card import model_card
from deepen.checkpoint.copy import hash_file
from deepen.checkpoint.gguf import is_gguf
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest, write_manifest
from deepen.checkpoint.writer import copy_side_files, file_hashes, hash_tensors
from deepen.data.text import Paths, Tokens, check_vocabulary, encoder, pack, read_tokens, rows_of_step
from deepen.errors import CheckpointError, DataError, OptionError, UnsupportedModelError
from deepen.likelihood import check_context, next_tokens, summed_loss, window_losses
from deepen.model import load
from deepen.output import check_disk, check_target, new_folder, write_file
from deepen.report.curves import recovery_curve
from deepen.train.loop import Batch, Run, train
from deepen.train.metrics import METRICS_FILE, read_rows
from deepen.train.schedule import check_schedule, warmup_steps
from deepen.train.schedule import learning_rate as rate
from deepen.train.state import begin, discard_state, scratch
from deepen.units import parse_count

CURVE_FILE = "recovery.png"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_HELD_OUT = 10  # without validation data at most a tenth of the rows is held out


def pretrain(
    model: str | Path,
    out: str | Path,
    *,
    data: Paths,
    tokens: str | int,
    sequence_length: int = 512,
    batch_tokens: str | int = 1024,
    micro_batch: int = 1,
    learning_rate: float = 1e-4,
    schedule: str = "cosine",
    warmup: float = 0.1,
    validation: str | Path | None = None,
    validation_tokens: str | int = 4096,
    every: int = 5,
    save_every: int = 50,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    base: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> Path:
    """Train all weights of a model on text, so that it predicts the next token everywhere, and write the result.

    AdamW (0.9, 0.95) without weight decay; gradients are clipped to norm 1. An interrupted run is continued by the same command
    and ends, on the same machine, with the same bits as an undisturbed one.

    Args:
        model: a checkpoint folder or a Hub id.
        out: the new folder: the trained checkpoint, `metrics.jsonl`, `recovery.png`, and the manifest.
        data: one or more `.txt`, `.md` or `.jsonl` files.
        tokens: how many tokens to train on, such as `100M`; rounded up to whole steps. Beyond one epoch, rows come again.
        sequence_length: tokens per row; the first of a row is given, the others are learned.
        batch_tokens: tokens per step, a multiple of `sequence_length`.
        micro_batch: rows that go through the model at once; more needs more memory. On CPUs one is fastest.
        learning_rate: the peak of the schedule.
        schedule: `cosine`, `constant` or `wsd`.
        warmup: below 1 a fraction of the steps, else a number of steps, in which the rate rises.
        validation: text to measure the perplexity on; by default the last rows of the data, which are then not trained on.
        validation_tokens: how many tokens of it; in rows of `sequence_length`, the first token of each not scored.
        every: steps between two measurements; there is one before the first step and one after the last.
        save_every: steps between saved states, from which an interrupted run continues.
        seed: of the data order.
        precision: what matrices are multiplied in: `float32`, `bfloat16`, or `auto`, which is `bfloat16` on a GPU. Weights and
            optimizer are float32 in either case; the result is written in the source's own type.
        device: `cpu`, `cuda`, …; the CPU by default.
        base: the model that this one was made from; its perplexity is drawn as the level to come back to.
        resume: continue what an interrupted run left; otherwise start anew.
        overwrite: replace an existing `out`.

    Returns:
        The folder.

    Raises:
        OptionError: an option out of its range, or an interrupted run with other settings.
        DataError: the data is missing, empty, not UTF-8, or too short.
        CheckpointError, UnsupportedModelError: the model is broken, quantised, or a GGUF file.
        UserError: the loss or the gradient is not finite.
    """
    start = time.monotonic()
    options = {
        "data": [str(data)] if isinstance(data, str | Path) else [str(path) for path in data],
        "tokens": parse_count(tokens),
        "sequence_length": sequence_length,
        "batch_tokens": parse_count(batch_tokens),
        "micro_batch": micro_batch,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "validation": None if validation is None else str(validation),
        "validation_tokens": parse_count(validation_tokens),
        "every": every,
        "seed": seed,
        "precision": precision,
        "base": None if base is None else str(base),
    }
    _check_options(options, save_every)
    batch_rows = parse_count(batch_tokens) // sequence_length
    steps = math.ceil(parse_count(tokens) / parse_count(batch_tokens))
    rising = warmup_steps(warmup, steps)
    out = check_target(out, overwrite=overwrite)
    source = _trainable(resolve(model))
    check_disk(out, _disk_bytes(source, states=2 if save_every < steps else 0))

    network, tokenizer = load(source.path, dtype="float32", device=device)
    if tokenizer is None:
        raise CheckpointError(
            "the checkpoint has no tokenizer", where=source.path, next="put its tokenizer files beside the weights"
        )
    check_context(network, sequence_length, "--sequence-length")
    rows, windows = _rows_and_windows(tokenizer, data, validation, sequence_length, parse_count(validation_tokens))
    check_vocabulary(np.concatenate([rows, windows]), network.get_input_embeddings().num_embeddings)
    if precision == "auto":
        precision = "bfloat16" if network.device.type == "cuda" else "float32"
    fingerprints = {"model": _fingerprint(source), "data": _digest(rows), "validation": _digest(windows)}
    settings = {**options, "precision": precision, **fingerprints}

    def batches(step: int) -> list[Batch]:
        chosen = rows_of_step(step, rows=len(rows), batch=batch_rows, seed=seed)
        micro_batches = torch.split(torch.from_numpy(rows[chosen]).long().to(network.device), micro_batch)
        return [Batch(part, next_tokens(part), part.shape[0] * (sequence_length - 1)) for part in micro_batches]

    with new_folder(out, overwrite=overwrite, resume=True) as folder:
        if begin(folder, settings, resume=resume):
            return out
        level = None if base is None else _base_level(base, windows, device)
        train(
            network,
            batches=batches,
            loss=lambda network, batch: summed_loss(network, batch.tokens, batch.labels),
            learns=network.parameters(),
            run=Run(
                folder=folder,
                steps=steps,
                step_tokens=batch_rows * sequence_length,
                rate=lambda step: rate(step, peak=learning_rate, steps=steps, warmup=rising, schedule=schedule),
                validate=lambda: float(window_losses(network, torch.from_numpy(windows)).mean()),
                every=every,
                save_every=save_every,
                seed=seed,
                precision=_PRECISIONS[precision],
            ),
        )
        _write_checkpoint(folder, network, source)
        facts = {
            "verb": "pretrain",
            "options": options,
            "source": {"model": str(model), "format": "safetensors", "weights_sha256": fingerprints["model"]},
            "plan": _plan_of(source.path),
            "settings": settings,
        }
        _write_report(folder, source.path, facts, level, start)
        discard_state(folder)
    return out


def _check_options(options: dict[str, Any], save_every: int) -> None:
    check_schedule(options["schedule"])
    for name in ("tokens", "batch_tokens", "sequence_length", "micro_batch", "validation_tokens", "every", "learning_rate"):
        if not options[name] > 0:
            raise OptionError(
                f"{options[name]} is not above zero", where=f"--{name.replace('_', '-')}", next="give a larger one"
            )
    if save_every < 1:
        raise OptionError(f"{save_every} is not above zero", where="--save-every", next="give a larger one")
    if options["batch_tokens"] % options["sequence_length"]:
        raise OptionError(
            f"{options['batch_tokens']} is not a multiple of the sequence length {options['sequence_length']}",
            where="--batch-tokens",
            next=f"use a multiple such as {2 * options['sequence_length']}",
        )
    if options["precision"] not in {"auto", *_PRECISIONS}:
        raise OptionError(f"no precision {options['precision']!r}", where="--precision", next="use auto, float32 or bfloat16")


def _trainable(path: Path) -> Checkpoint:
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


def _disk_bytes(source: Checkpoint, states: int) -> int:
    # a state holds the weights and AdamW's two moments in float32; the last good one lies beside the one being written
    tensors = source.tensors.values()
    return sum(tensor.nbytes + states * 12 * tensor.parameters for tensor in tensors)


def _fingerprint(source: Checkpoint) -> str:
    """One hash for all weights."""
    files = sorted({tensor.file for tensor in source.tensors.values()})
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()


def _digest(tokens: Tokens) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def _rows_and_windows(
    tokenizer: Any,
    data: Paths,
    validation: str | Path | None,
    length: int,
    validation_tokens: int,
) -> tuple[Tokens, Tokens]:
    encode, end_of_text = encoder(tokenizer), tokenizer.eos_token_id
    rows = pack(read_tokens(data, encode, end_of_text=end_of_text), length, where=data)
    if validation is not None:
        stream = read_tokens(validation, encode, end_of_text=end_of_text)[:validation_tokens]
        return rows, pack(stream, length, where=validation)
    if len(rows) < 2:
        raise DataError(
            f"the data makes one row of {length} tokens, and none is left to measure on",
            next="give more data, or validation data of its own",
        )
    held_out = max(1, min(validation_tokens // length, len(rows) // _HELD_OUT))
    return rows[:-held_out], rows[-held_out:]


def _base_level(base: str | Path, windows: Tokens, device: str | None) -> float:
    network = load(base, dtype="float32", device=device)[0]
    check_vocabulary(windows, network.get_input_embeddings().num_embeddings)
    return math.exp(float(window_losses(network, torch.from_numpy(windows)).mean()))


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


def _write_report(folder: Path, source: Path, facts: dict[str, Any], level: float | None, start: float) -> None:
    """The recovery curve, the model card, and last the manifest, whose presence says that all is there."""
    rows = read_rows(folder / METRICS_FILE)
    points = [(row["tokens"], row["validation_perplexity"]) for row in rows if "validation_perplexity" in row]
    name = Path(facts["source"]["model"]).name
    recovery_curve(folder / CURVE_FILE, {name: points}, baseline=level)
    results = {
        "tokens": points[-1][0],
        "training_seconds": round(sum(row.get("seconds", 0.0) for row in rows), 3),
        "validation_perplexity_before": points[0][1],
        "validation_perplexity": points[-1][1],
        "base_validation_perplexity": level,
    }
    readme = source / "README.md"
    card = model_card(facts, readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None)
    against = "" if level is None else f"; the base has {level:.2f}"
    sentence = f"Perplexity on held-out text: {points[0][1]:.2f} before, {points[-1][1]:.2f} after {points[-1][0]:,} tokens"
    card += f"\n## Training\n\n{sentence}{against}.\n\n![Recovery curve]({CURVE_FILE})\n"
    write_file(folder / "README.md", card)
    tensors, headers = hash_tensors(folder)
    files = file_hashes(folder, exclude=(*headers, MANIFEST_FILE))
    seconds = time.monotonic() - start
    write_manifest(folder, **facts, seconds=seconds, results=results, files=files, tensors=tensors, shard_headers=headers)
