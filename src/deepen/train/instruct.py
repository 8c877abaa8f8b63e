"""Instruction tuning: the model learns what the assistant says in conversations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
import torch

from deepen.data.chat import read_conversations
from deepen.data.template import Row, encode_conversations, find_template, limit_rows
from deepen.data.text import Paths, check_vocabulary, rows_of_step
from deepen.errors import DataError, OptionError
from deepen.likelihood import check_context
from deepen.train.loop import Batch
from deepen.train.network import Words
from deepen.train.options import Shared, check_above_zero, settle
from deepen.train.sequences import mean_token_loss, micro_batches, pack_sequences, sequence, token_loss
from deepen.train.stage import Lesson, loss_and_perplexity, run_stage
from deepen.units import parse_count

CURVE_FILE = "training.png"
TEMPLATE_FILE = "chat_template.jinja"
_TOO_LONG = ("error", "truncate", "drop")
_ABOVE_ZERO = ("epochs", "sequence_length", "batch_rows", "validation_rows")
_BATCH_ROWS = 8
_Each = TypeVar("_Each")
_HELD_OUT = 10  # without validation data at most a tenth of the conversations is held out


def instruct(
    model: str | Path,
    out: str | Path,
    *,
    data: Paths,
    template: str | Path = "model",
    epochs: float = 1.0,
    sequence_length: int = 512,
    too_long: str = "error",
    cap: Sequence[str] | None = None,
    batch_rows: int | None = None,
    batch_tokens: str | int | None = None,
    packing: bool = False,
    validation: str | Path | None = None,
    validation_rows: int = 32,
    **shared: Unpack[Shared],
) -> Path:
    """Train a model on conversations, so that it says what the assistant says in them, and write the result.

    Only the assistant's tokens are learned, in every turn, and that the turn ends. Each conversation is a row of its own; the
    loss of a step is the mean over the learned tokens of all its rows. Optimizer and resuming are those of `pretrain`.

    Args:
        model: a checkpoint folder or a Hub id.
        out: the new folder: the trained checkpoint with the chat template it was trained with, `metrics.jsonl`,
            `training.png`, and the manifest.
        data: one or more `.json`, `.jsonl` or `.parquet` files; see `read_conversations` for their layouts.
        template: `model` for the model's own chat template, `solar`, `chatml`, or a file of Jinja text.
        epochs: how often each conversation is learned; a part of an epoch is possible. Each epoch has an order of its own.
        sequence_length: the longest conversation in tokens.
        too_long: what happens to longer ones: `error`, `truncate` or `drop`.
        cap: `PATH=N` takes only N rows of that file, drawn by the seed.
        batch_rows: conversations per step; 8 unless given.
        batch_tokens: the same as the most tokens that a step may read, a multiple of `sequence_length`.
        packing: lay the conversations of a step one after the other into rows of `sequence_length` instead of padding them;
            none sees another. It pays on GPUs.
        validation: conversations to measure the loss on; by default some of the data, evenly spread, that are then not learned.
        validation_rows: how many conversations of it.
        **shared: see `deepen.train.options.Shared`; `learning_rate` is 2e-5 and `every` 10 unless given.

    Returns:
        The folder.

    Raises:
        OptionError: an option out of its range, no usable template, or an interrupted run with other settings.
        DataError: the data is missing, malformed (by file and row), too long, or does not go through the template.
        CheckpointError, UnsupportedModelError: the model is broken, quantised, or a GGUF file.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
        UserError: the loss or the gradient is not finite.
    """
    settled = settle(shared, learning_rate=2e-5, every=10)
    options: dict[str, Any] = {
        "data": [str(data)] if isinstance(data, str | Path) else [str(path) for path in data],
        "template": str(template),
        "epochs": epochs,
        "sequence_length": sequence_length,
        "too_long": too_long,
        "cap": list(cap or ()),
        "batch_rows": _batch_rows(batch_rows, batch_tokens, sequence_length),
        "packing": packing,
        "validation": None if validation is None else str(validation),
        "validation_rows": validation_rows,
    }
    check_above_zero(options, _ABOVE_ZERO)
    if epochs == math.inf:
        raise OptionError("a run without end", where="--epochs", next="give a number such as 1 or 0.5")
    if too_long not in _TOO_LONG:
        raise OptionError(f"{too_long!r} is no choice", where="--too-long", next=f"use {', '.join(_TOO_LONG)}")

    def prepare(words: Words, device: torch.device) -> Lesson[Batch]:
        check_context(words.config, sequence_length, "--sequence-length")
        jinja = find_template(template, words.tokenizer)
        rows, held_out = _rows(words, jinja, options, data, validation, settled["seed"])
        check_vocabulary(
            np.concatenate([each for row in (*rows, *held_out) for each in (row.tokens, row.labels)]), words.vocabulary
        )
        order = _Order(rows, max(1, math.ceil(round(epochs * len(rows), 6))), options["batch_rows"], settled["seed"])
        measured = [sequence(row.tokens, row.labels) for row in held_out]

        def batches(step: int) -> list[Batch]:
            chosen = [sequence(row.tokens, row.labels) for row in order.rows_of(step)]
            return micro_batches(pack_sequences(chosen, sequence_length) if packing else chosen, settled["micro_batch"], device)

        return Lesson(
            batches=batches,
            loss=token_loss,
            validate=lambda network: loss_and_perplexity(mean_token_loss(network, measured, device)),
            steps=order.steps,
            tokens=order.tokens,
            fingerprints={
                "data": _digest(rows),
                "validation": _digest(held_out),
                "chat_template": hashlib.sha256(jinja.encode()).hexdigest(),
            },
            subject="the assistant's words in held-out conversations",
            curve=CURVE_FILE,
            results={
                "conversations": len(rows),
                "learned_tokens": sum(row.terms for row in rows),
                "held_out_conversations": len(held_out),
            },
            files={TEMPLATE_FILE: jinja},
        )

    return run_stage("instruct", model, out, options=options, shared=settled, prepare=prepare)


def _rows(
    words: Words, template: str, options: dict[str, Any], data: Paths, validation: str | Path | None, seed: int
) -> tuple[list[Row], list[Row]]:
    """The conversations to learn, and those to measure on."""
    length, too_long = options["sequence_length"], options["too_long"]
    conversations = read_conversations(data, cap=options["cap"], seed=seed)
    rows = limit_rows(
        encode_conversations(conversations, words.tokenizer, template, ends=words.ends), length, too_long=too_long
    )
    if validation is None:
        return _split(rows, options["validation_rows"])
    measured = _spread(read_conversations(validation), options["validation_rows"])[1]
    held_out = encode_conversations(measured, words.tokenizer, template, ends=words.ends)
    return rows, limit_rows(held_out, length, too_long=too_long)


class _Order:
    """Which conversations each step learns: every epoch is a permutation of all of them, and the last step takes what is left.

    Args:
        rows: all conversations.
        total: how many are learned in all, over all epochs.
        batch: how many a step takes.
        seed: of the permutations.
    """

    def __init__(self, rows: Sequence[Row], total: int, batch: int, seed: int) -> None:
        self.steps = math.ceil(total / batch)
        self._rows, self._total, self._batch, self._seed = rows, total, batch, seed
        read = [sum(len(row.tokens) for row in self.rows_of(step)) for step in range(self.steps)]
        self._tokens = np.concatenate([[0], np.cumsum(read)])

    def rows_of(self, step: int) -> list[Row]:
        chosen = rows_of_step(step, rows=len(self._rows), batch=self._batch, seed=self._seed)
        return [self._rows[index] for index in chosen[: self._total - step * self._batch]]

    def tokens(self, step: int) -> int:
        """Tokens read before a step."""
        return int(self._tokens[step])


def _batch_rows(rows: int | None, tokens: str | int | None, length: int) -> int:
    if tokens is None:
        return _BATCH_ROWS if rows is None else rows
    if rows is not None:
        raise OptionError("both --batch-rows and --batch-tokens are given", next="give one of them")
    count = parse_count(tokens)
    if count < 1 or length < 1 or count % length:
        raise OptionError(
            f"{count} is not a multiple of the sequence length {length}",
            where="--batch-tokens",
            next=f"use a multiple such as {2 * length}",
        )
    return count // length


def _split(rows: Sequence[Row], held_out: int) -> tuple[list[Row], list[Row]]:
    if len(rows) < 2:
        raise DataError(
            "there is one conversation, and none is left to measure on", next="give more data, or validation data of its own"
        )
    return _spread(rows, max(1, min(held_out, len(rows) // _HELD_OUT)))


def _spread(rows: Sequence[_Each], count: int) -> tuple[list[_Each], list[_Each]]:
    """Rows without some of them, and those: `count` at most, evenly spread so that every file and kind of row has a share."""
    count = min(count, len(rows))
    chosen = {(2 * place + 1) * len(rows) // (2 * count) for place in range(count)}
    return [row for place, row in enumerate(rows) if place not in chosen], [rows[place] for place in sorted(chosen)]


def _digest(rows: Sequence[Row]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(len(row.tokens).to_bytes(8, "little") + row.tokens.tobytes() + row.labels.tobytes())
    return total.hexdigest()
