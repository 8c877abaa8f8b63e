"""Continued pretraining on text: what heals a seam."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch

from deepen.data.corpus import Corpus, open_corpora, open_corpus
from deepen.data.order import Indices, row_order
from deepen.data.pack import Packed, count_rows, hold_out, pack_rows
from deepen.data.text import Paths, check_vocabulary
from deepen.errors import OptionError
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


def pretrain(
    model: str | Path,
    out: str | Path,
    *,
    data: Paths,
    tokens: str | int | None = None,
    epochs: float | None = None,
    weights: Sequence[float] | None = None,
    text_column: str = "text",
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
        data: one or more `.txt`, `.md`, `.jsonl` or `.parquet` files, folders of them, globs, and data sets of the Hub, as
            `org/name[@revision][:config][:split]`. They are tokenised once, and kept in the cache. No token sees one of another
            document, and the first of a document is not learned.
        tokens: how many tokens to train on, such as `100M`; rounded up to whole steps. Beyond one epoch, rows come again.
        epochs: instead, how often to go through the data.
        weights: the share of each path of the data; by default all rows are one heap.
        text_column: where rows have their text.
        sequence_length: tokens per row; the first of a row is given, the others are learned.
        batch_tokens: tokens per step over all processes, a multiple of `sequence_length`.
        validation: text to measure the perplexity on; by default some of the data (see `hold_out`), not trained on then.
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
        "weights": None if weights is None else list(weights),
        "text_column": text_column,
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
        corpora = open_corpora(data, words.tokenizer, weights=weights, column=text_column)
        rows, windows = _rows_and_windows(corpora, words.tokenizer, options)
        check_vocabulary(max(corpus.highest for corpus in (*corpora, *windows.corpora)), words.vocabulary)
        total = sum(map(len, rows)) * sequence_length
        wanted = options["tokens"] if epochs is None else math.ceil(round(epochs * total, 6))
        batch_rows = options["batch_tokens"] // sequence_length
        order = row_order(rows, batch=batch_rows, seed=settled["seed"], weights=weights)
        measured = _sequences(pack_rows(windows.corpora, windows.sources, windows.rows, sequence_length))

        def batches(step: int) -> list[Batch]:
            chosen = _sequences(pack_rows(corpora, *order(step), sequence_length))
            return micro_batches(chosen, settled["micro_batch"], device)

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
            fingerprints={
                "data": _digest([corpus.fingerprint for corpus in corpora], *rows),
                "validation": _digest([corpus.fingerprint for corpus in windows.corpora], windows.sources, windows.rows),
            },
            subject="held-out text",
            length=sequence_length,
            packed=any(len(corpus.starts) > 1 for corpus in corpora),
            curve=CURVE_FILE,
            until_recovered=until_recovered,
        )

    return run_stage("pretrain", model, out, options=options, shared=settled, prepare=prepare)


def _sequences(packed: Packed) -> list[Batch]:
    positions = [None] * len(packed.tokens) if packed.positions is None else packed.positions
    return [sequence(*row) for row in zip(packed.tokens, packed.labels, positions, strict=True)]


class _Windows(NamedTuple):
    """Rows to measure on: the n-th is row `rows[n]` of `corpora[sources[n]]`."""

    corpora: Sequence[Corpus]
    sources: Indices
    rows: Indices


def _rows_and_windows(corpora: Sequence[Corpus], tokenizer: Any, options: Mapping[str, Any]) -> tuple[list[Indices], _Windows]:
    """For each corpus the rows to learn, and the rows to measure on."""
    length, tokens = options["sequence_length"], options["validation_tokens"]
    counts = [count_rows(corpus, length) for corpus in corpora]
    if options["validation"] is not None:
        measured = open_corpus(options["validation"], tokenizer, column=options["text_column"])
        few = np.arange(min(count_rows(measured, length), max(1, tokens // length)))
        return [np.arange(count) for count in counts], _Windows([measured], np.zeros_like(few), few)
    held_out = hold_out(corpora, length, tokens, weights=options["weights"])
    rows = [np.setdiff1d(np.arange(count), some) for count, some in zip(counts, held_out, strict=True)]
    sources = np.repeat(np.arange(len(corpora)), [len(some) for some in held_out])
    return rows, _Windows(corpora, sources, np.concatenate(held_out))


def _digest(fingerprints: Sequence[str], *rows: Indices) -> str:
    total = hashlib.sha256(" ".join(fingerprints).encode())
    for each in rows:
        total.update(each.tobytes())
    return total.hexdigest()
