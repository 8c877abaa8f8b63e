"""Instruction tuning: the model learns what the assistant says in conversations."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from deepen.checkpoint import resolve
from deepen.data.chat import read_conversations
from deepen.data.template import Row, encode_conversations, find_template, limit_rows
from deepen.data.text import IGNORED, Paths, check_vocabulary, rows_of_step
from deepen.errors import DataError, OptionError
from deepen.likelihood import check_context, mean_label_loss, summed_loss
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

CURVE_FILE = "training.png"
TEMPLATE_FILE = "chat_template.jinja"
_TOO_LONG = ("error", "truncate", "drop")
_ABOVE_ZERO = (
    "epochs", "sequence_length", "batch_rows", "micro_batch", "validation_rows", "every", "save_every", "learning_rate",
)  # fmt: skip
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
    micro_batch: int = 1,
    learning_rate: float = 2e-5,
    schedule: str = "cosine",
    warmup: float = 0.1,
    validation: str | Path | None = None,
    validation_rows: int = 32,
    every: int = 10,
    save_every: int = 50,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> Path:
    """Train all weights of a model on conversations, so that it says what the assistant says in them, and write the result.

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
        micro_batch: conversations that go through the model at once, padded to the longest. On CPUs one is fastest.
        learning_rate: the peak of the schedule.
        schedule: `cosine`, `constant` or `wsd`.
        warmup: below 1 a fraction of the steps, else a number of steps, in which the rate rises.
        validation: conversations to measure the loss on; by default some of the data, evenly spread, that are then not learned.
        validation_rows: how many conversations of it.
        every: steps between two measurements; there is one before the first step and one after the last.
        save_every: steps between saved states, from which an interrupted run continues.
        seed: of the data order and of what is drawn under a cap.
        precision: what matrices are multiplied in: `float32`, `bfloat16`, or `auto`, which is `bfloat16` on a GPU.
        device: `cpu`, `cuda`, …; the CPU by default.
        resume: continue what an interrupted run left; otherwise start anew.
        overwrite: replace an existing `out`.

    Returns:
        The folder.

    Raises:
        OptionError: an option out of its range, no usable template, or an interrupted run with other settings.
        DataError: the data is missing, malformed (by file and row), too long, or does not go through the template.
        CheckpointError, UnsupportedModelError: the model is broken, quantised, or a GGUF file.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
        UserError: the loss or the gradient is not finite.
    """
    start = time.monotonic()
    options: dict[str, Any] = {
        "data": [str(data)] if isinstance(data, str | Path) else [str(path) for path in data],
        "template": str(template),
        "epochs": epochs,
        "sequence_length": sequence_length,
        "too_long": too_long,
        "cap": list(cap or ()),
        "batch_rows": _batch_rows(batch_rows, batch_tokens, sequence_length),
        "micro_batch": micro_batch,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "validation": None if validation is None else str(validation),
        "validation_rows": validation_rows,
        "every": every,
        "seed": seed,
        "precision": precision,
    }
    check_options({**options, "save_every": save_every}, _ABOVE_ZERO)
    if epochs == math.inf:
        raise OptionError("a run without end", where="--epochs", next="give a number such as 1 or 0.5")
    if too_long not in _TOO_LONG:
        raise OptionError(f"{too_long!r} is no choice", where="--too-long", next=f"use {', '.join(_TOO_LONG)}")
    out = check_target(out, overwrite=overwrite)
    source = open_trainable(resolve(model))
    conversations = read_conversations(data, cap=cap or (), seed=seed)
    measured = [] if validation is None else read_conversations(validation)
    most_steps = epochs * len(conversations) / options["batch_rows"]
    check_disk(out, disk_bytes(source, states=2 if save_every < most_steps else 0))

    network, tokenizer = load_network(source, device)
    check_context(network, sequence_length, "--sequence-length")
    jinja, ends = find_template(template, tokenizer), _ends(network)
    rows = limit_rows(encode_conversations(conversations, tokenizer, jinja, ends=ends), sequence_length, too_long=too_long)
    if validation is None:
        rows, held_out = _split(rows, validation_rows)
    else:
        held_out = encode_conversations(_spread(measured, validation_rows)[1], tokenizer, jinja, ends=ends)
        held_out = limit_rows(held_out, sequence_length, too_long=too_long)
    check_vocabulary(
        np.concatenate([each for row in (*rows, *held_out) for each in (row.tokens, row.labels)]),
        network.get_input_embeddings().num_embeddings,
    )
    order = _Order(rows, max(1, math.ceil(round(epochs * len(rows), 6))), int(options["batch_rows"]), seed)
    rising = warmup_steps(warmup, order.steps)
    precision = choose_precision(precision, network)
    fingerprints = {
        "model": weights_hash(source),
        "data": _digest(rows),
        "validation": _digest(held_out),
        "chat_template": hashlib.sha256(jinja.encode()).hexdigest(),
    }
    settings = {**options, "precision": precision, **fingerprints}

    with new_folder(out, overwrite=overwrite, resume=True) as folder:
        if begin(folder, settings, resume=resume):
            return out
        train(
            network,
            batches=lambda step: _micro_batches(order.rows_of(step), micro_batch, network.device),
            loss=lambda network, batch: summed_loss(network, batch.tokens, batch.labels),
            learns=network.parameters(),
            run=Run(
                folder=folder,
                steps=order.steps,
                tokens=order.tokens,
                rate=lambda step: rate(step, peak=learning_rate, steps=order.steps, warmup=rising, schedule=schedule),
                validate=lambda: mean_label_loss(network, map(_tensors, held_out)),
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
                "verb": "instruct",
                "options": options,
                "source": {"model": str(model), "format": "safetensors", "weights_sha256": fingerprints["model"]},
                "settings": settings,
            },
            subject="the assistant's words in held-out conversations",
            curve=CURVE_FILE,
            start=start,
            results={
                "conversations": len(rows),
                "learned_tokens": sum(row.terms for row in rows),
                "held_out_conversations": len(held_out),
            },
            files={TEMPLATE_FILE: jinja},
        )
    return out


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


def _ends(network: Any) -> list[int]:
    """Where generation stops, as the checkpoint says."""
    ends = network.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


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


def _micro_batches(rows: Sequence[Row], size: int, device: torch.device) -> list[Batch]:
    return [_pad(rows[first : first + size], device) for first in range(0, len(rows), size)]


def _pad(rows: Sequence[Row], device: torch.device) -> Batch:
    """Rows of unequal lengths as one batch. What follows the end of a row is not learned, and no token looks ahead to it."""
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for place, row in enumerate(rows):
        read, learned = _tensors(row)
        tokens[place, : len(read)], labels[place, : len(read)] = read, learned
    return Batch(tokens.to(device), labels.to(device), sum(row.terms for row in rows))


def _tensors(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(row.tokens).long(), torch.from_numpy(row.labels).long()


def _digest(rows: Sequence[Row]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(len(row.tokens).to_bytes(8, "little") + row.tokens.tobytes() + row.labels.tobytes())
    return total.hexdigest()
