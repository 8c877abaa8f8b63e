"""Options that several verbs share, with their help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.errors import OptionError
from deepen.units import parse_bytes, parse_count


def with_unit(parse: Callable[[str], int]) -> Callable[[Any], int]:
    """A parser of numbers with units that typer can name the option of."""

    def read(text: Any) -> int:
        try:
            return parse(text)
        except OptionError as error:
            raise typer.BadParameter(error.what) from error

    return read


count = with_unit(parse_count)
size = with_unit(parse_bytes)


def numbers(text: Any) -> tuple[float, ...]:
    """A parser of numbers with commas between them."""
    try:
        return tuple(map(float, str(text).split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5") from error


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, a .gguf file, or a Hub id org/name.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The new folder or file; it appears when it is complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
ShardSize = Annotated[
    int,
    typer.Option(parser=size, metavar="SIZE", help="The largest file of weights; 5GB unless given.", show_default=False),
]

_PLAN = "Layer plan (exactly one)"
Drop = Annotated[
    int | None,
    typer.Option(
        metavar="M", help="Depth up-scaling: without the last M layers, then without the first M.", rich_help_panel=_PLAN
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Slices of layers, as in Python: 0:24,8:32.", rich_help_panel=_PLAN),
]
Repeat = Annotated[
    str | None,
    typer.Option(metavar="I:J", help="Layers I to J-1 run twice, in place; I:JxK runs them K times.", rich_help_panel=_PLAN),
]
Expand = Annotated[
    int | None,
    typer.Option(metavar="K", help="K new identity blocks spread evenly (LLaMA Pro).", rich_help_panel=_PLAN),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A plan file, or a mergekit passthrough YAML.", rich_help_panel=_PLAN),
]
IdentityInit = Annotated[
    bool,
    typer.Option("--identity-init", help="Later occurrences of a layer start as the identity.", rich_help_panel=_PLAN),
]
As = Annotated[str | None, typer.Option("--as", metavar="llama", help="Turn a Mistral checkpoint into the Llama architecture.")]

Data = Annotated[list[Path], typer.Option(metavar="PATH", help="Text: .txt, .md or .jsonl; several may follow.")]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="Where a checkpoint runs, such as cpu or cuda; auto fills all GPUs first.")
]
Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="What it computes in: float32, bfloat16 or float16.")]
Engine = Annotated[
    str, typer.Option(metavar="NAME|URL", help="auto, llamacpp, transformers, or the URL of a server of OpenAI's protocol.")
]
Context = Annotated[
    int | None, typer.Option(parser=count, metavar="N", help="Hold N tokens of prompt and answer; what fits unless given.")
]
Draft = Annotated[
    str | None, typer.Option(metavar="MODEL|ngram|auto", help="Let it guess the next tokens; auto keeps it if it is faster.")
]
Quantize = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="The format a checkpoint runs in: llama.cpp's (Q8_0 unless given), or 4bit or 8bit."),
]
Trim = Annotated[
    str | None,
    typer.Option(
        metavar="oldest", help="Leave out the oldest turns, or tokens of a --raw prompt, that do not fit the context."
    ),
]

PLAN: Mapping[str, tuple[Any, Any]] = {
    "drop": (Drop, None), "layers": (Layers, None), "repeat": (Repeat, None), "expand": (Expand, None),
    "plan": (PlanFile, None), "identity_init": (IdentityInit, False),
}  # fmt: skip
"""The layer plan; like the groups below, names with their options and defaults."""
PLACE: Mapping[str, tuple[Any, Any]] = {"device": (Device, None), "dtype": (Dtype, None), **PLAN}
"""Where a checkpoint runs, and as what."""
RUN: Mapping[str, tuple[Any, Any]] = {"context": (Context, None), "quantize": (Quantize, None), **PLACE}
"""How an engine runs a model."""


def sharing(group: Mapping[str, tuple[Any, Any]], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a group of options after its own, with its own defaults; it gets them as the dictionary `shared`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for name, each in inspect.signature(command, eval_str=True).parameters.items() if name != "shared"]
        common = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=defaults.get(name, default))
            for name, (kind, default) in group.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{each.name: given[each.name] for each in own}, shared={name: given[name] for name in group})

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + common
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate
