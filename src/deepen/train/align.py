"""Alignment: the model learns from pairs which of two answers is preferred, by DPO at once or step by step (sDPO)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from deepen.data.chat import text_of_turns
from deepen.data.contamination import open_index, without_matches
from deepen.data.preference import Pair, Preference, encode_preferences, limit_pairs, read_preferences
from deepen.data.template import find_template
from deepen.data.text import Paths, check_vocabulary
from deepen.errors import DataError, OptionError
from deepen.likelihood import check_context
from deepen.report.curves import training_curves
from deepen.train.account import Account, Rows
from deepen.train.course import Chunk, Course
from deepen.train.dpo import LOSSES, Objective, PairBatch, summed_loss
from deepen.train.epochs import check_rows, digest, rows_per_step, split, spread
from deepen.train.network import Words
from deepen.train.options import Shared, check_above_zero, settle
from deepen.train.stage import Lesson, run_stage

CURVE_FILE = "training.png"
TEMPLATE_FILE = "chat_template.jinja"


def align(
    model: str | Path,
    out: str | Path,
    *,
    data: Paths,
    stepwise: bool = False,
    beta: float = 0.1,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    template: str | Path = "model",
    epochs: float = 1.0,
    sequence_length: int = 1024,
    too_long: str = "error",
    cap: Sequence[str] | None = None,
    exclude_benchmarks: Sequence[str | Path] | None = None,
    batch_rows: int | None = None,
    batch_tokens: str | int | None = None,
    validation: str | Path | None = None,
    validation_rows: int = 64,
    **shared: Unpack[Shared],
) -> Path:
    """Train a model by direct preference optimisation, so that it finds preferred answers likelier, and write the result.

    The reference is the model itself before its first step. Its log-probabilities are computed once, so there is never a second
    model in memory. Dropout is switched off, since the reference has none. Both answers of a pair lie in one row behind the
    other, each with the prompt before it, and nothing is padded. Optimizer and resuming are those of `pretrain`.

    Stepwise (sDPO: Kim et al. 2024, arXiv:2403.19270, section 3), each path of the data is a step of its own, an ordinary DPO
    with its own optimizer and schedule, whose reference is the model of the step before. The order is from easy to hard: by the
    reward accuracy on each set of the model at the start, falling. That model has no reference yet, and so no
    reward; its accuracy is the share of pairs whose chosen answer it finds likelier than the rejected one.

    Args:
        model: a checkpoint folder or a Hub id.
        out: the new folder: the trained checkpoint with the chat template it was trained with, `metrics.jsonl`,
            `training.png`, and the manifest, in whose results `chunks` has a row for each step.
        data: one or more `.json`, `.jsonl` or `.parquet` files; see `read_preferences` for their layouts.
        stepwise: sDPO: one step per path.
        beta: how closely the model is held to its reference; see `Objective`.
        loss: `sigmoid` or `ipo`.
        label_smoothing: the chance that a pair is the wrong way round, below 0.5; of `sigmoid` only.
        sft_weight: how much of the chosen answer's negative log-likelihood per token is added to the loss.
        template: `model` for the model's own chat template, `solar`, `chatml`, or a file of Jinja text.
        epochs: how often each pair is learned, in its step; a part of an epoch is possible.
        sequence_length: the longest prompt with an answer, in tokens.
        too_long: what happens to longer ones: `error`, `truncate` or `drop`.
        cap: `PATH=N` takes only N pairs of that file, drawn by the seed.
        exclude_benchmarks: benchmarks whose rows are left out where pairs repeat them; see `instruct`.
        batch_rows: pairs per step; 8 unless given.
        batch_tokens: the same as the most tokens that a step may read, a multiple of twice the `sequence_length`.
        validation: pairs to measure on; by default some of the data, evenly spread, that are then not learned.
        validation_rows: how many pairs of it.
        **shared: see `deepen.train.options.Shared`; `learning_rate` is 5e-7 and `every` 10 unless given. There is no `teacher`.

    Returns:
        The folder.

    Raises:
        OptionError: an option out of its range, no usable template, or an interrupted run with other settings.
        DataError: the data is missing, malformed (by file and row), too long, or does not go through the template.
        CheckpointError, UnsupportedModelError: the model is broken, quantised, or a GGUF file.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
        UserError: the loss or the gradient is not finite.
    """
    settled = settle(shared, learning_rate=5e-7, every=10)
    objective = Objective(loss, beta, label_smoothing, sft_weight)
    options: dict[str, Any] = {
        "data": [str(data)] if isinstance(data, str | Path) else [str(path) for path in data],
        "stepwise": stepwise,
        "beta": beta,
        "loss": loss,
        "label_smoothing": label_smoothing,
        "sft_weight": sft_weight,
        "template": str(template),
        "epochs": epochs,
        "sequence_length": sequence_length,
        "too_long": too_long,
        "cap": list(cap or ()),
        "exclude_benchmarks": [str(each) for each in exclude_benchmarks or ()],
        "batch_rows": rows_per_step(batch_rows, batch_tokens, 2 * sequence_length, what="twice the sequence length,"),
        "validation": None if validation is None else str(validation),
        "validation_rows": validation_rows,
    }
    check_rows(options)
    _check_objective(objective)
    if settled["teacher"] is not None:
        raise OptionError("alignment learns from pairs, not from a teacher", where="--teacher", next="leave it out")

    def prepare(words: Words, device: torch.device) -> Lesson[PairBatch]:
        check_context(words.config, sequence_length, "--sequence-length")
        jinja = find_template(template, words.tokenizer)
        sets = read_preferences(data, cap=options["cap"], seed=settled["seed"])
        excluded: dict[str, int] = {}
        if options["exclude_benchmarks"]:
            benchmarks = open_index(options["exclude_benchmarks"])
            left = [without_matches(each, _text, benchmarks, what="pairs") for each in sets]
            sets = [each for each, _ in left]
            excluded = {name: sum(counts[name] for _, counts in left) for name in benchmarks.rows}
        chunks, held_out = _chunks(words, jinja, options, sets, validation)
        rows = [row for pair in (*held_out, *(pair for chunk in chunks for pair in chunk.pairs)) for row in pair.rows]
        check_vocabulary(np.concatenate([each for row in rows for each in (row.tokens, row.labels)]), words.vocabulary)
        course = Course(chunks, held_out, objective, options, settled, device)
        return Lesson(
            loss=lambda network, batch, _teacher: summed_loss(network, batch, objective),
            parts=course.parts,
            steps=course.steps,
            fingerprints={
                "data": digest(row for chunk in chunks for pair in chunk.pairs for row in pair.rows),
                "validation": digest(row for pair in held_out for row in pair.rows),
                "chat_template": hashlib.sha256(jinja.encode()).hexdigest(),
            },
            subject="held-out pairs",
            length=2 * sequence_length,
            packed=True,
            curve=CURVE_FILE,
            results={
                "pairs": sum(len(chunk.pairs) for chunk in chunks),
                "held_out_pairs": len(held_out),
                "excluded_benchmark_rows": excluded,
            },
            files={TEMPLATE_FILE: jinja},
            account=lambda name, subject, rows, control, _: _account(course.table, name, subject, rows, control),
            has_level=False,
        )

    return run_stage("align", model, out, options=options, shared=settled, prepare=prepare)


def _chunks(
    words: Words,
    template: str,
    options: dict[str, Any],
    read: Sequence[Sequence[Preference]],
    validation: str | Path | None,
) -> tuple[list[Chunk], list[Pair]]:
    """The pairs of each step, and those to measure on."""

    def encode(preferences: Sequence[Preference]) -> list[Pair]:
        pairs = encode_preferences(preferences, words.tokenizer, template, ends=words.ends)
        return limit_pairs(pairs, options["sequence_length"], too_long=options["too_long"])

    sets = list(map(encode, read))
    numbered = [(number, pair) for number, pairs in enumerate(sets) for pair in pairs]
    if validation is None:
        numbered, measured = split(numbered, options["validation_rows"], what="pair")
        held_out = [pair for _, pair in measured]
    else:
        others = [preference for each in read_preferences(validation) for preference in each]
        held_out = encode(spread(others, options["validation_rows"])[1])
    chunks = [
        Chunk(name, [pair for number, pair in numbered if number == wanted]) for wanted, name in enumerate(options["data"])
    ]
    for chunk in chunks:
        if not chunk.pairs:
            raise DataError(
                "its only pair is held out, and none is left to learn",
                where=chunk.data,
                next="give more data, or validation data of its own",
            )
    if not options["stepwise"]:
        chunks = [Chunk(" + ".join(chunk.data for chunk in chunks), [pair for chunk in chunks for pair in chunk.pairs])]
    return chunks, held_out


def _text(preference: Preference) -> str:
    return "\n".join(map(text_of_turns, (preference.chosen, preference.rejected)))


def _account(table: Sequence[Mapping[str, Any]], name: str, subject: str, rows: Rows, control: Rows) -> Account:
    """The reward accuracy on held-out pairs, and what each step did."""
    measured, beside = ([row for row in each if "validation_loss" in row] for each in (rows, control))
    first, last = measured[0], measured[-1]
    text = (
        f"Reward accuracy on {subject}: {last['validation_reward_accuracy']:.2f} after {last['tokens']:,} tokens, with a"
        f" loss of {last['validation_loss']:.3f}"
    )
    text += f"; {beside[-1]['validation_reward_accuracy']:.2f} for the base after the same training" if beside else ""
    panels = {
        label: {
            f"{run}, {where}": [(row["tokens"], row[key]) for row in each if key in row]
            for run, each in ({name: rows} | ({"control": control} if control else {})).items()
            for where, key in (("learned pairs", learned), ("held-out pairs", f"validation_{learned}"))
        }
        for label, learned in (("loss", "loss"), ("reward accuracy", "reward_accuracy"))
    }
    return Account(
        f"{text}.\n\n{_markdown(table)}",
        {
            "validation_loss_before": first["validation_loss"],
            **{key: last[key] for key in ("validation_loss", "validation_reward_accuracy", "validation_reward_margin")},
            "control_validation_reward_accuracy": beside[-1]["validation_reward_accuracy"] if beside else None,
            "chunks": list(table),
        },
        lambda file: training_curves(file, panels),
    )


def _check_objective(objective: Objective) -> None:
    check_above_zero({"beta": objective.beta}, ("beta",))
    if objective.loss not in LOSSES:
        raise OptionError(f"no loss is called {objective.loss!r}", where="--loss", next=f"use {' or '.join(LOSSES)}")
    if not 0 <= objective.label_smoothing < 0.5:
        raise OptionError(
            f"{objective.label_smoothing} is not from 0 to below 0.5", where="--label-smoothing", next="use for example 0.1"
        )
    if objective.label_smoothing and objective.loss == "ipo":
        raise OptionError("ipo knows no label smoothing", where="--label-smoothing", next="leave it out, or use --loss sigmoid")
    if not objective.sft_weight >= 0:
        raise OptionError(f"{objective.sft_weight} is below zero", where="--sft-weight", next="use for example 1")


TABLE = (
    "data",
    "pairs",
    "start accuracy",
    "margin",
    "log p chosen",
    "log p rejected",
    "reward accuracy",
    "reward margin",
    "tokens",
)
"""Header of the table that `table_rows` fills."""


def table_rows(chunks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The `chunks` of the manifest's results as the cells of a table, under `TABLE`."""

    def change(chunk: Mapping[str, Any], key: str) -> str:
        return f"{chunk['before'][key]:.1f} → {chunk['after'][key]:.1f}"

    return [
        [
            " + ".join(Path(name).name for name in chunk["data"].split(" + ")),
            f"{chunk['pairs']:,}",
            f"{chunk['start_reward_accuracy']:.2f}",
            change(chunk, "margin"),
            change(chunk, "chosen_log_probability"),
            change(chunk, "rejected_log_probability"),
            f"{chunk['reward_accuracy']:.2f}",
            f"{chunk['reward_margin']:.3f}",
            f"{chunk['chosen_tokens']:.0f}, {chunk['rejected_tokens']:.0f}",
        ]
        for chunk in chunks
    ]


def _markdown(chunks: Sequence[Mapping[str, Any]]) -> str:
    lines = [TABLE, ["---"] * len(TABLE), *table_rows(chunks)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '-') for cell in line)} |" for line in lines)
