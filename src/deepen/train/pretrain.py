"""Continued pretraining on text: what heals a seam."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from deepen.data.text import IGNORED, Paths, Tokens, check_vocabulary, encoder, pack, read_tokens, rows_of_step
from deepen.errors import DataError, OptionError
from deepen.likelihood import check_context
from deepen.train.account import loss_and_perplexity
from deepen.train.loop import Batch
from deepen.train.network import Words
from deepen.train.options import Shared, check_above_zero, settle
from deepen.train.sequences import mean_token_loss, micro_batches, sequence, token_loss
from deepen.train.stage import Lesson, Part, run_stage
from deepen.units import parse_count

CURVE_FILE = "recovery.png"
_ABOVE_ZERO = ("tokens", "epochs", "batch_tokens", "sequence_length", "validation_tokens")
_HELD_OUT = 10  # without validation data at most a tenth of the rows is held out


def pretrain(
    model: str | Path,
    out: str | Path,
    *,
    data: Paths,
    tokens: str | int | None = None,
    epochs: float | None = None,
    sequence_length: int = 512,
    batch_tokens: str | int = 1024,
    validation: str | Path | None = None,
    validation_tokens: str | int = 4096,
    until_recovered: bool = False,
    **shared: Unpack[Shared],
) -> Path:
    """Train a model on text, so that it predicts the next token everywhere, and write the result.

    AdamW (0.9, 0.95) without weight decay; gradients are clipped to norm 1. An interrupted run is continued by the same
    command, in any number of processes, and ends, in one process of the same machine, with the bits of an undisturbed one.

    Args:
        model: a checkpoint folder or a Hub id.
        out: the new folder: the trained checkpoint, `metrics.jsonl`, `recovery.png`, and the manifest.
        data: one or more `.txt`, `.md` or `.jsonl` files.
        tokens: how many tokens to train on, such as `100M`; rounded up to whole steps. Beyond one epoch, rows come again.
        epochs: instead, how often to go through the data.
        sequence_length: tokens per row; the first of a row is given, the others are learned.
        batch_tokens: tokens per step over all processes, a multiple of `sequence_length`.
        validation: text to measure the perplexity on; by default the last rows of the data, which are then not trained on.
        validation_tokens: how many tokens of it; in rows of `sequence_length`, the first token of each not scored.
        until_recovered: end as soon as a measurement is at the base's level or below.
        **shared: see `deepen.train.options.Shared`; `learning_rate` is 1e-4 and `every` 5 unless given.

    Returns:
        The folder.

    Raises:
        OptionError: an option out of its range, or an interrupted run with other settings.
        DataError: the data is missing, empty, not UTF-8, or too short.
        CheckpointError, UnsupportedModelError: the model is broken, quantised, or a GGUF file.
        UserError: the loss or the gradient is not finite.
    """
    settled = settle(shared, every=5)
    options: dict[str, Any] = {
        "data": [str(data)] if isinstance(data, str | Path) else [str(path) for path in data],
        "tokens": None if tokens is None else parse_count(tokens),
        "epochs": epochs,
        "sequence_length": sequence_length,
        "batch_tokens": parse_count(batch_tokens),
        "validation": None if validation is None else str(validation),
        "validation_tokens": parse_count(validation_tokens),
        "until_recovered": until_recovered,
    }
    check_above_zero(options, _ABOVE_ZERO)
    if (tokens is None) == (epochs is None) or epochs == math.inf:
        raise OptionError("say how long: either --tokens or --epochs", next="give for example --tokens 10M")
    if options["batch_tokens"] % sequence_length:
        raise OptionError(
            f"{options['batch_tokens']} is not a multiple of the sequence length {sequence_length}",
            where="--batch-tokens",
            next=f"use a multiple such as {2 * sequence_length}",
        )

    def prepare(words: Words, device: torch.device) -> Lesson[Batch]:
        check_context(words.config, sequence_length, "--sequence-length")
        rows, windows = _rows_and_windows(words.tokenizer, data, validation, sequence_length, options["validation_tokens"])
        check_vocabulary(np.concatenate([rows, windows]), words.vocabulary)
        wanted = options["tokens"] if epochs is None else math.ceil(round(epochs * rows.size, 6))
        batch_rows = options["batch_tokens"] // sequence_length

        measured = [_row(window) for window in windows]

        def batches(step: int) -> list[Batch]:
            chosen = rows_of_step(step, rows=len(rows), batch=batch_rows, seed=settled["seed"])
            return micro_batches([_row(rows[index]) for index in chosen], settled["micro_batch"], device)

        whole = Part(
            batches=batches,
            validate=lambda network: loss_and_perplexity(mean_token_loss(network, measured, device)),
            steps=math.ceil(wanted / options["batch_tokens"]),
            tokens=lambda step: step * batch_rows * sequence_length,
        )
        return Lesson(
            loss=token_loss,
            parts=lambda _network, _place: [whole],
            steps=whole.steps,
            fingerprints={"data": _digest(rows), "validation": _digest(windows)},
            subject="held-out text",
            curve=CURVE_FILE,
            until_recovered=until_recovered,
        )

    return run_stage("pretrain", model, out, options=options, shared=settled, prepare=prepare)


def _row(tokens: Tokens) -> Batch:
    labels = np.append(tokens[1:], np.int32(IGNORED))
    return sequence(tokens, labels)


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
