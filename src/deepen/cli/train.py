"""Train: pretrain, instruct, align."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_path, print_table

LearningRate = Annotated[float, typer.Option(metavar="RATE", help="The peak of the schedule.")]
Schedule = Annotated[str, typer.Option(metavar="NAME", help="cosine, constant or wsd.")]
Warmup = Annotated[float, typer.Option(metavar="N", help="Below 1 a fraction of the steps, else a number of steps.")]
Every = Annotated[int, typer.Option(metavar="N", help="Steps between two measurements.")]
SaveEvery = Annotated[int, typer.Option(metavar="N", help="Steps between two saved states, to resume from.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the order of the data.")]
Precision = Annotated[str, typer.Option(metavar="TYPE", help="What matrices are multiplied in: auto, float32 or bfloat16.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue an interrupted run.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    # what follows `--data FILE` without an option of its own is more data
    for verb in (pretrain, instruct, align):
        app.command(rich_help_panel="Train", context_settings={"allow_extra_args": True})(verb)


def pretrain(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: options.Data,
    tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Train on N tokens, such as 100M.")],
    sequence_length: Annotated[int, typer.Option(parser=count, metavar="N", help="Tokens per row.")] = 512,
    batch_tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="Tokens per step, a multiple of the sequence length.")
    ] = 1024,
    micro_batch: Annotated[int, typer.Option(metavar="N", help="Rows that go through the model at once.")] = 1,
    learning_rate: LearningRate = 1e-4,
    schedule: Schedule = "cosine",
    warmup: Warmup = 0.1,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to measure on; the last rows of the data unless given.")
    ] = None,
    validation_tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="How many tokens of it to measure on.")
    ] = 4096,
    every: Every = 5,
    save_every: SaveEvery = 50,
    seed: Seed = 0,
    precision: Precision = "auto",
    device: options.Device = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model this was made from; a level in the curve.")
    ] = None,
    resume: Resume = True,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Train a model on text: what heals the seams of a deepened one."""
    from deepen.train.pretrain import pretrain as train

    written = train(
        model, out, data=[*data, *map(Path, context.args)], tokens=tokens, sequence_length=sequence_length,
        batch_tokens=batch_tokens, micro_batch=micro_batch, learning_rate=learning_rate, schedule=schedule,
        warmup=warmup, validation=validation, validation_tokens=validation_tokens, every=every, save_every=save_every,
        seed=seed, precision=precision, device=device, base=base, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    print_path(written, json=json)


def instruct(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Conversations: .json, .jsonl or .parquet; several may follow.")
    ],
    template: Annotated[str, typer.Option(metavar="NAME", help="Chat template: model, solar, chatml or a file.")] = "model",
    epochs: Annotated[float, typer.Option(metavar="N", help="How often each conversation is learned.")] = 1.0,
    sequence_length: Annotated[int, typer.Option(parser=count, metavar="N", help="The longest conversation in tokens.")] = 512,
    too_long: Annotated[
        str, typer.Option(metavar="WHAT", help="What happens to longer ones: error, truncate or drop.")
    ] = "error",
    cap: Annotated[
        list[str] | None, typer.Option(metavar="PATH=N", help="Take only N rows of a file, drawn by the seed; repeatable.")
    ] = None,
    batch_rows: Annotated[int | None, typer.Option(metavar="N", help="Conversations per step; 8 unless given.")] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Instead: the most tokens per step, a multiple of the sequence length."),
    ] = None,
    micro_batch: Annotated[int, typer.Option(metavar="N", help="Conversations that go through the model at once.")] = 1,
    learning_rate: LearningRate = 2e-5,
    schedule: Schedule = "cosine",
    warmup: Warmup = 0.1,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Conversations to measure on; some of the data unless given.")
    ] = None,
    validation_rows: Annotated[int, typer.Option(metavar="N", help="How many conversations of it to measure on.")] = 32,
    every: Every = 10,
    save_every: SaveEvery = 50,
    seed: Seed = 0,
    precision: Precision = "auto",
    device: options.Device = None,
    resume: Resume = True,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Train a model on conversations: it learns what the assistant says."""
    from deepen.train.instruct import instruct as train

    written = train(
        model, out, data=[*data, *map(Path, context.args)], template=template, epochs=epochs,
        sequence_length=sequence_length, too_long=too_long, cap=cap, batch_rows=batch_rows, batch_tokens=batch_tokens,
        micro_batch=micro_batch, learning_rate=learning_rate, schedule=schedule, warmup=warmup, validation=validation,
        validation_rows=validation_rows, every=every, save_every=save_every, seed=seed, precision=precision,
        device=device, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    print_path(written, json=json)


def align(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Pairs of answers: .json, .jsonl or .parquet; several may follow.")
    ],
    stepwise: Annotated[
        bool, typer.Option("--stepwise", help="sDPO: a step per path, easy to hard, each with the model before as reference.")
    ] = False,
    beta: Annotated[float, typer.Option(metavar="B", help="How closely the model is held to its reference.")] = 0.1,
    loss: Annotated[str, typer.Option(metavar="NAME", help="sigmoid (DPO) or ipo.")] = "sigmoid",
    label_smoothing: Annotated[
        float, typer.Option(metavar="P", help="The chance that a pair is the wrong way round; of sigmoid only.")
    ] = 0.0,
    sft_weight: Annotated[
        float, typer.Option(metavar="W", help="How much of the chosen answer's own loss per token is added.")
    ] = 0.0,
    template: Annotated[str, typer.Option(metavar="NAME", help="Chat template: model, solar, chatml or a file.")] = "model",
    epochs: Annotated[float, typer.Option(metavar="N", help="How often each pair is learned.")] = 1.0,
    sequence_length: Annotated[
        int, typer.Option(parser=count, metavar="N", help="The longest prompt with an answer, in tokens.")
    ] = 1024,
    too_long: Annotated[
        str, typer.Option(metavar="WHAT", help="What happens to longer ones: error, truncate or drop.")
    ] = "error",
    cap: Annotated[
        list[str] | None, typer.Option(metavar="PATH=N", help="Take only N pairs of a file, drawn by the seed; repeatable.")
    ] = None,
    batch_rows: Annotated[int | None, typer.Option(metavar="N", help="Pairs per step; 8 unless given.")] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Instead: the most tokens per step, a multiple of twice the length."),
    ] = None,
    micro_batch: Annotated[int, typer.Option(metavar="N", help="Pairs that go through the model at once.")] = 1,
    what: Annotated[str, typer.Option("--train", metavar="WHAT", help="What learns: all, repeated (layers) or lora.")] = "all",
    lora_rank: Annotated[int, typer.Option(metavar="N", help="Of LoRA's adapters.")] = 16,
    learning_rate: LearningRate = 5e-7,
    schedule: Schedule = "cosine",
    warmup: Warmup = 0.1,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pairs to measure on; some of the data unless given.")
    ] = None,
    validation_rows: Annotated[int, typer.Option(metavar="N", help="How many pairs of it to measure on.")] = 64,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model this was made from, for --control.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Train the base on the same pairs too.")] = False,
    every: Every = 10,
    save_every: SaveEvery = 50,
    keep: Annotated[int, typer.Option(metavar="N", help="How many saved states are kept while the run lasts.")] = 1,
    seed: Seed = 0,
    precision: Precision = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile each layer before it runs.")] = False,  # noqa: A002
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, a third more time.")
    ] = False,
    device: options.Device = None,
    resume: Resume = True,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Train a model on pairs of answers, of which one is preferred: DPO, or sDPO step by step."""
    from deepen.checkpoint.manifest import read_manifest
    from deepen.train.align import TABLE, table_rows
    from deepen.train.align import align as train

    written = train(
        model, out, data=[*data, *map(Path, context.args)], stepwise=stepwise, beta=beta, loss=loss,
        label_smoothing=label_smoothing, sft_weight=sft_weight, template=template, epochs=epochs,
        sequence_length=sequence_length, too_long=too_long, cap=cap, batch_rows=batch_rows, batch_tokens=batch_tokens,
        validation=validation, validation_rows=validation_rows, train=what, lora_rank=lora_rank,
        learning_rate=learning_rate, schedule=schedule, warmup=warmup, base=base, control=control, every=every,
        save_every=save_every, keep=keep, micro_batch=micro_batch, seed=seed, precision=precision, compile=compile,
        activation_checkpointing=activation_checkpointing, device=device, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    chunks = read_manifest(written)["results"]["chunks"]
    if json:
        print_json({"out": written, "chunks": chunks})
    else:
        print_table(table_rows(chunks), TABLE)
        print_path(written, json=False)
