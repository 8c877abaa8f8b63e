"""Continued pretraining on text: what heals a seam."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepen.checkpoint import resolve
from deepen.data.text import Paths, Tokens, check_vocabulary, encoder, pack, read_tokens, rows_of_step
from deepen.errors import DataError, OptionError
from deepen.likelihood import check_context, next_tokens, summed_loss, window_losses
from deepen.model import load
from deepen.output import check_disk, check_target, new_folder
from deepen.train.loop import Batch, Run, train
from deepen.train.schedule import learning_rate as rate
from deepen.train.schedule import warmup_steps
from deepen.train.stage import (
    PRECISIONS,
    check_options,
    choose_precision,
    disk_bytes,
    finish,
    load_network,
    open_trainable,
    weights_hash,
)
from deepen.train.state import begin
from deepen.units import parse_count

CURVE_FILE = "recovery.png"
_ABOVE_ZERO = (
    "tokens", "batch_tokens", "sequence_length", "micro_batch", "validation_tokens", "every", "save_every", "learning_rate",
)  # fmt: skip
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
    options: dict[str, Any] = {
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
    check_options({**options, "save_every": save_every}, _ABOVE_ZERO)
    if options["batch_tokens"] % sequence_length:
        raise OptionError(
            f"{options['batch_tokens']} is not a multiple of the sequence length {sequence_length}",
            where="--batch-tokens",
            next=f"use a multiple such as {2 * sequence_length}",
        )
    batch_rows = parse_count(batch_tokens) // sequence_length
    steps = math.ceil(parse_count(tokens) / parse_count(batch_tokens))
    rising = warmup_steps(warmup, steps)
    out = check_target(out, overwrite=overwrite)
    source = open_trainable(resolve(model))
    check_disk(out, disk_bytes(source, states=2 if save_every < steps else 0))

    network, tokenizer = load_network(source, device)
    check_context(network, sequence_length, "--sequence-length")
    rows, windows = _rows_and_windows(tokenizer, data, validation, sequence_length, parse_count(validation_tokens))
    check_vocabulary(np.concatenate([rows, windows]), network.get_input_embeddings().num_embeddings)
    precision = choose_precision(precision, network)
    fingerprints = {"model": weights_hash(source), "data": _digest(rows), "validation": _digest(windows)}
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
                tokens=lambda step: step * batch_rows * sequence_length,
                rate=lambda step: rate(step, peak=learning_rate, steps=steps, warmup=rising, schedule=schedule),
                validate=lambda: float(window_losses(network, torch.from_numpy(windows)).mean()),
                every=every,
                save_every=save_every,
                seed=seed,
                precision=PRECISIONS[precision],
            ),
        )
        finish(
            folder,
            network,
            source,
            {
                "verb": "pretrain",
                "options": options,
                "source": {"model": str(model), "format": "safetensors", "weights_sha256": fingerprints["model"]},
                "settings": settings,
            },
            subject="held-out text",
            curve=CURVE_FILE,
            start=start,
            level=level,
            results={"base_validation_perplexity": level},
        )
    return out


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
