"""Train: pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_path


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    # what follows `--data FILE` without an option of its own is more data
    app.command(rich_help_panel="Train", context_settings={"allow_extra_args": True})(pretrain)


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
    learning_rate: Annotated[float, typer.Option(metavar="RATE", help="The peak of the schedule.")] = 1e-4,
    schedule: Annotated[str, typer.Option(metavar="NAME", help="cosine, constant or wsd.")] = "cosine",
    warmup: Annotated[float, typer.Option(metavar="N", help="Below 1 a fraction of the steps, else a number of steps.")] = 0.1,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to measure on; the last rows of the data unless given.")
    ] = None,
    validation_tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="How many tokens of it to measure on.")
    ] = 4096,
    every: Annotated[int, typer.Option(metavar="N", help="Steps between two measurements.")] = 5,
    save_every: Annotated[int, typer.Option(metavar="N", help="Steps between two saved states, to resume from.")] = 50,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the data.")] = 0,
    precision: Annotated[
        str, typer.Option(metavar="TYPE", help="What matrices are multiplied in: auto, float32 or bfloat16.")
    ] = "auto",
    device: options.Device = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model this was made from; a level in the curve.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Continue an interrupted run.")] = True,
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
