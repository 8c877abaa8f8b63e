"""Instruction tuning: the model learns what the assistant says in conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from deepen.data.chat import Conversation, read_conversations, text_of_turns
from deepen.data.contamination import open_index, without_matches
from deepen.data.template import Row, encode_conversations, find_template, limit_rows
from deepen.data.text import Paths, check_vocabulary
from deepen.likelihood import check_context
from deepen.train.account import loss_and_perplexity
from deepen.train.epochs import Order, check_rows, digest, rows_per_step, split, spread
from deepen.train.loop import Batch
from deepen.train.network import Words
from deepen.train.options import Shared, settle
from deepen.train.sequences import mean_token_loss, micro_batches, pack_sequences, sequence, token_loss
from deepen.train.stage import Lesson, Part, run_stage

CURVE_FILE = "training.png"
TEMPLATE_FILE = "chat_template.jinja"


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
    exclude_tasks: Sequence[str] | None = None,
    exclude_benchmarks: Sequence[str | Path] | None = None,
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
        exclude_tasks: names of tasks whose rows are left out; `solar` for those that SOLAR left out.
        exclude_benchmarks: benchmarks whose rows are left out where conversations repeat them, by name (`h6`, `gsm8k`) or as
            folders or files; see `deepen.data.benchmarks.read_benchmarks` and `deepen.data.contamination`.
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
        "exclude_tasks": list(exclude_tasks or ()),
        "exclude_benchmarks": [str(each) for each in exclude_benchmarks or ()],
        "batch_rows": rows_per_step(batch_rows, batch_tokens, sequence_length),
        "packing": packing,
        "validation": None if validation is None else str(validation),
        "validation_rows": validation_rows,
    }
    check_rows(options)

    def prepare(words: Words, device: torch.device) -> Lesson[Batch]:
        conversations = read_conversations(
            data, cap=options["cap"], seed=settled["seed"], exclude_tasks=options["exclude_tasks"]
        )
        excluded: dict[str, int] = {}
        if options["exclude_benchmarks"]:
            benchmarks = open_index(options["exclude_benchmarks"])
            conversations, excluded = without_matches(conversations, text_of_turns, benchmarks, what="conversations")
        measured = None if validation is None else read_conversations(validation)
        check_context(words.config, sequence_length, "--sequence-length")
        jinja = find_template(template, words.tokenizer)
        rows, held_out = _rows(words, jinja, options, conversations, measured)
        check_vocabulary(
            np.concatenate([each for row in (*rows, *held_out) for each in (row.tokens, row.labels)]), words.vocabulary
        )
        order = Order(rows, epochs=epochs, batch=options["batch_rows"], seed=settled["seed"], size=lambda row: len(row.tokens))
        windows = [sequence(row.tokens, row.labels) for row in held_out]

        def batches(step: int) -> list[Batch]:
            chosen = [sequence(row.tokens, row.labels) for row in order.rows_of(step)]
            return micro_batches(pack_sequences(chosen, sequence_length) if packing else chosen, settled["micro_batch"], device)

        whole = Part(
            batches=batches,
            validate=lambda network: loss_and_perplexity(mean_token_loss(network, windows, device)),
            steps=order.steps,
            tokens=order.tokens,
        )
        return Lesson(
            loss=token_loss,
            parts=lambda _network, _place: [whole],
            steps=whole.steps,
            fingerprints={
                "data": digest(rows),
                "validation": digest(held_out),
                "chat_template": hashlib.sha256(jinja.encode()).hexdigest(),
            },
            subject="the assistant's words in held-out conversations",
            length=sequence_length,
            packed=packing,
            curve=CURVE_FILE,
            results={
                "conversations": len(rows),
                "learned_tokens": sum(row.terms for row in rows),
                "held_out_conversations": len(held_out),
                "excluded_benchmark_rows": excluded,
            },
            files={TEMPLATE_FILE: jinja},
        )

    return run_stage("instruct", model, out, options=options, shared=settled, prepare=prepare)


def _rows(
    words: Words,
    template: str,
    options: dict[str, Any],
    conversations: Sequence[Conversation],
    measured: Sequence[Conversation] | None,
) -> tuple[list[Row], list[Row]]:
    """The conversations to learn, and those to measure on, as tokens."""

    def encode(some: Sequence[Conversation]) -> list[Row]:
        rows = encode_conversations(some, words.tokenizer, template, ends=words.ends)
        return limit_rows(rows, options["sequence_length"], too_long=options["too_long"])

    rows = encode(conversations)
    if measured is None:
        return split(rows, options["validation_rows"], what="conversation")
    return rows, encode(spread(measured, options["validation_rows"])[1])
