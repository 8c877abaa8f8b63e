"""Train: pretrain, instruct, align."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_path, print_table, print_training

_LEARN = "What learns, and how fast"
_MEASURE = "Measure and compare"
_RUN = "The run itself"
_EXCLUDE = "--exclude-benchmarks"


def _option(kind: Any, panel: str, help: str, *names: str, metavar: str | None = None) -> Any:  # noqa: A002
    return Annotated[kind, typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)]


# The options of all stages, in the order of the help, with the default of those that do not differ between stages
_SHARED: dict[str, tuple[Any, Any]] = {
    "learning_rate": (_option(float, _LEARN, "The peak of the schedule.", metavar="RATE"), None),
    "new_layer_learning_rate": (
        _option(float | None, _LEARN, "The peak for the layers that the plan added, if it is another.", metavar="RATE"),
        None,
    ),
    "schedule": (_option(str, _LEARN, "cosine, constant or wsd.", metavar="NAME"), "cosine"),
    "warmup": (_option(float, _LEARN, "Below 1 a fraction of the steps, else a number of steps.", metavar="N"), 0.1),
    "train": (
        _option(str, _LEARN, "What learns: all, repeated (the layers that the plan added) or lora.", metavar="WHAT"),
        "all",
    ),
    "lora_rank": (_option(int, _LEARN, "Of the adapters.", metavar="N"), 16),
    "teacher": (_option(str | None, _LEARN, "A model to learn from too, such as the base.", metavar="MODEL"), None),
    "teacher_share": (_option(float, _LEARN, "Its part in the loss, from 0 to 1.", metavar="S"), 0.5),
    "base": (
        _option(str | None, _MEASURE, "What this was made from; see the manifest unless given.", metavar="MODEL"),
        None,
    ),
    "control": (_option(bool, _MEASURE, "Train the base on the same data too, and draw both.", "--control"), False),
    "every": (_option(int, _MEASURE, "Steps between two measurements.", metavar="N"), None),
    "save_every": (_option(int, _RUN, "Steps between two saved states, to resume from.", metavar="N"), 50),
    "keep": (_option(int, _RUN, "How many saved states are kept while the run lasts.", metavar="N"), 1),
    "micro_batch": (_option(int, _RUN, "Rows that go through the model at once.", metavar="N"), 1),
    "seed": (_option(int, _RUN, "Of the order of the data, and of everything drawn.", metavar="N"), 0),
    "precision": (_option(str, _RUN, "What matrices are multiplied in: auto, float32 or bfloat16.", metavar="TYPE"), "auto"),
    "compile": (_option(bool, _RUN, "Compile each layer before it runs.", "--compile"), False),
    "activation_checkpointing": (
        _option(bool, _RUN, "Less memory, a third more time.", "--activation-checkpointing"),
        False,
    ),
    "device": (_option(str | None, _RUN, "cpu, cuda, …; a GPU where there is one.", metavar="NAME"), None),
    "grid_factor": (_option(float | None, _RUN, "Grams of CO2 per kWh here, to tell the run's.", metavar="G"), None),
    "resume": (_option(bool, _RUN, "Continue an interrupted run.", "--resume/--no-resume"), True),
    "overwrite": (options.Overwrite, False),
    "json": (options.Json, False),
}


class _Training(TyperCommand):
    """A command in which several values may follow `--exclude-benchmarks`; they must not be taken for data."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word.partition("=")[0]
            elif option == _EXCLUDE and spread[-1] != _EXCLUDE:
                spread.append(_EXCLUDE)
            spread.append(word)
        return super().parse_args(ctx, spread)


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    # what follows `--data FILE` without an option of its own is more data
    for verb in (pretrain, instruct, align):
        app.command(rich_help_panel="Train", context_settings={"allow_extra_args": True}, cls=_Training)(verb)


def _tell(written: Path, *, json: bool) -> None:
    """Print what a run did; of several processes only the first one does."""
    from deepen.checkpoint.manifest import read_manifest
    from deepen.train import ranks
    from deepen.train.align import TABLE, table_rows

    if ranks.rank() > 0:
        return
    results = read_manifest(written)["results"]
    if json:
        print_json({"out": written, **results})
        return
    print_training(results)
    if "chunks" in results:
        print_table(table_rows(results["chunks"]), TABLE)
    print_path(written, json=False)


Template = Annotated[str, typer.Option(metavar="NAME", help="Chat template: model, solar, chatml or a file.")]
TooLong = Annotated[str, typer.Option(metavar="WHAT", help="What happens to longer ones: error, truncate or drop.")]
ExcludeBenchmarks = Annotated[
    list[str] | None,
    typer.Option(
        _EXCLUDE, metavar="NAME|DIR", help="Leave out rows that repeat a benchmark's: gsm8k, h6, a folder; several may follow."
    ),
]
Cap = Annotated[
    list[str] | None, typer.Option(metavar="PATH=N", help="Take only N rows of a file, drawn by the seed; repeatable.")
]


@options.sharing(_SHARED, learning_rate=1e-4, every=5)
def pretrain(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: Annotated[
        list[str],
        typer.Option(metavar="PATH", help="Text: files, folders, globs, data sets of the Hub; several may follow."),
    ],
    tokens: Annotated[int | None, typer.Option(parser=count, metavar="N", help="Train on N tokens, such as 100M.")] = None,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Instead: how often to go through the data.")] = None,
    weights: Annotated[
        Any, typer.Option(parser=options.numbers, metavar="W,…", help="The share of each PATH; by size unless given.")
    ] = None,
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Where rows have their text.")] = "text",
    sequence_length: Annotated[int, typer.Option(parser=count, metavar="N", help="Tokens per row.")] = 512,
    batch_tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="Tokens per step, a multiple of the sequence length.")
    ] = 1024,
    validation: Annotated[
        str | None, typer.Option(metavar="PATH", help="Text to measure on; some of the data unless given.")
    ] = None,
    validation_tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="How many tokens of it to measure on.")
    ] = 4096,
    until_recovered: Annotated[
        bool, typer.Option("--until-recovered", help="End when a measurement is back at the base's level.")
    ] = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Train a model on text: what heals the seams of a deepened one."""
    from deepen.train.pretrain import pretrain as train

    json = shared.pop("json")
    written = train(
        model, out, data=[*data, *context.args], tokens=tokens, epochs=epochs, weights=weights, text_column=text_column,
        sequence_length=sequence_length, batch_tokens=batch_tokens, validation=validation,
        validation_tokens=validation_tokens, until_recovered=until_recovered, **shared,
    )  # fmt: skip
    _tell(written, json=json)


@options.sharing(_SHARED, learning_rate=2e-5, every=10)
def instruct(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="Conversations: .json, .jsonl or .parquet; several may follow.")
    ],
    template: Template = "model",
    epochs: Annotated[float, typer.Option(metavar="N", help="How often each conversation is learned.")] = 1.0,
    sequence_length: Annotated[int, typer.Option(parser=count, metavar="N", help="The longest conversation in tokens.")] = 512,
    too_long: TooLong = "error",
    cap: Cap = None,
    exclude_tasks: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave out rows of this task; solar: those that SOLAR left out.")
    ] = None,
    exclude_benchmarks: ExcludeBenchmarks = None,
    batch_rows: Annotated[int | None, typer.Option(metavar="N", help="Conversations per step; 8 unless given.")] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Instead: the most tokens per step, a multiple of the sequence length."),
    ] = None,
    packing: Annotated[
        bool, typer.Option("--packing", help="Several conversations in one row instead of padding; none sees another.")
    ] = False,
    validation: Annotated[
        str | None, typer.Option(metavar="PATH", help="Conversations to measure on; some of the data unless given.")
    ] = None,
    validation_rows: Annotated[int, typer.Option(metavar="N", help="How many conversations of it to measure on.")] = 32,
    *,
    shared: dict[str, Any],
) -> None:
    """Train a model on conversations: it learns what the assistant says."""
    from deepen.train.instruct import instruct as train

    json = shared.pop("json")
    written = train(
        model, out, data=[*data, *context.args], template=template, epochs=epochs, sequence_length=sequence_length,
        too_long=too_long, cap=cap, exclude_tasks=exclude_tasks, exclude_benchmarks=exclude_benchmarks,
        batch_rows=batch_rows, batch_tokens=batch_tokens, packing=packing,
        validation=validation, validation_rows=validation_rows, **shared,
    )  # fmt: skip
    _tell(written, json=json)


@options.sharing(_SHARED, learning_rate=5e-7, every=10)
def align(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="Pairs of answers: .json, .jsonl or .parquet; several may follow.")
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
    template: Template = "model",
    epochs: Annotated[float, typer.Option(metavar="N", help="How often each pair is learned.")] = 1.0,
    sequence_length: Annotated[
        int, typer.Option(parser=count, metavar="N", help="The longest prompt with an answer, in tokens.")
    ] = 1024,
    too_long: TooLong = "error",
    cap: Cap = None,
    exclude_benchmarks: ExcludeBenchmarks = None,
    batch_rows: Annotated[int | None, typer.Option(metavar="N", help="Pairs per step; 8 unless given.")] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Instead: the most tokens per step, a multiple of twice the length."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="PATH", help="Pairs to measure on; some of the data unless given.")
    ] = None,
    validation_rows: Annotated[int, typer.Option(metavar="N", help="How many pairs of it to measure on.")] = 64,
    *,
    shared: dict[str, Any],
) -> None:
    """Train a model on pairs of answers, of which one is preferred: DPO, or sDPO step by step."""
    from deepen.train.align import align as train

    json = shared.pop("json")
    written = train(
        model, out, data=[*data, *context.args], stepwise=stepwise, beta=beta, loss=loss,
        label_smoothing=label_smoothing, sft_weight=sft_weight, template=template, epochs=epochs,
        sequence_length=sequence_length, too_long=too_long, cap=cap, exclude_benchmarks=exclude_benchmarks,
        batch_rows=batch_rows, batch_tokens=batch_tokens, validation=validation, validation_rows=validation_rows, **shared,
    )  # fmt: skip
    _tell(written, json=json)
