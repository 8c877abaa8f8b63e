"""Look before you leap, and build: plan, doctor, scale, verify, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import numbers
from deepen.cli.printing import print_json, print_path, print_table, print_text
from deepen.errors import OptionError
from deepen.units import format_bytes, format_count, format_energy, format_seconds

_NAMES_SHOWN = 20
_RUN = "Training to estimate"


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    app.command(rich_help_panel="Look before you leap")(plan)
    app.command(rich_help_panel="Look before you leap")(doctor)
    app.command(rich_help_panel="Build")(scale)
    app.command(rich_help_panel="Build")(verify)
    app.command(rich_help_panel="Build")(merge)


def plan(
    model: options.Model,
    drop: options.Drop = None,
    layers: options.Layers = None,
    repeat: options.Repeat = None,
    expand: options.Expand = None,
    plan: options.PlanFile = None,
    identity_init: options.IdentityInit = False,
    as_: options.As = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan to a file that --plan reads.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Estimate a training on these: h100, a100, …; cpu is a core.", rich_help_panel=_RUN),
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="How many; 1 unless given.", rich_help_panel=_RUN)] = None,
    tokens: Annotated[
        Any,
        typer.Option(
            parser=options.count,
            metavar="N",
            help="Tokens to read; 1B unless given.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of a row; 4,096 unless the context is shorter.", rich_help_panel=_RUN),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the peak FLOP/s that you reach.", rich_help_panel=_RUN),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="USD", help="Price of one for an hour.", rich_help_panel=_RUN)] = None,
    json: options.Json = False,
) -> None:
    """Show and price a layer plan, from the config and the tensor headers alone."""
    from deepen.plan import describe

    numbers = {"gpus": gpus, "tokens": tokens, "sequence_length": sequence_length, "mfu": mfu, "price": price}
    run = _run_to_estimate(gpu, {name: number for name, number in numbers.items() if number is not None})

    chosen: dict[str, Any] = {
        "drop": drop, "layers": layers, "repeat": repeat, "expand": expand, "plan": plan, "identity_init": identity_init,
    }  # fmt: skip
    described = describe(model, **chosen, as_=as_, run=run)
    if output is not None:
        _write_plan(model, chosen, output, overwrite)
    if json:
        print_json(described)
        return
    from deepen.plan import Plan

    planned = Plan(described["source_layers"], tuple(described["layers"]), tuple(described["identity"]))
    print_text(planned.explain() + "\n")
    print_table(
        [
            ("parameters", f"{described['parameters']:,}", f"the base has {described['source_parameters']:,}"),
            ("weights", format_bytes(described["weight_bytes"]), ""),
            ("on disk", format_bytes(described["disk_bytes"]), "with tokenizer and other files"),
            ("KV cache", format_bytes(described["kv_bytes_per_token"]), "per token, float16"),
            ("compute", f"{format_count(described['flops_per_token'])} FLOP", "per token, without attention over the context"),
            *(
                (f"to train, {name.replace('_', ' ')}", format_bytes(size), "without activations")
                for name, size in described["train_bytes"].items()
            ),
        ]
    )
    if run is not None:
        _print_estimate(described["estimate"])
    for warning in described["warnings"]:
        print_text(f"warning: {warning}")


def _run_to_estimate(gpu: str | None, numbers: dict[str, Any]) -> dict[str, Any] | None:
    """The training that is to be estimated, if one is."""
    if gpu is None and numbers:
        option = f"--{next(iter(numbers)).replace('_', '-')}"
        raise OptionError("the accelerator is not named", where=option, next="add --gpu h100, or --gpu cpu")
    return None if gpu is None else {"gpu": gpu, **numbers}


def _print_estimate(found: dict[str, Any]) -> None:
    memory = next(iter(found["memory_per_gpu_bytes"].values()))
    has = f" of {format_bytes(found['gpu_memory_bytes'])}" if found["gpu_memory_bytes"] else ""
    again = ", --activation-checkpointing" if found["activation_checkpointing"] else ""
    rows = f"rows of {found['sequence_length']:,} tokens"
    copies = f"{found['replicas']} copies of the model" if found["replicas"] > 1 else "one copy of the model"
    print_text(f"\nTraining on {format_count(found['tokens'])} tokens, {found['gpus']} x {found['gpu']}, {copies}:\n")
    print_table(
        [
            ("time", format_seconds(found["seconds"]), f"{found['tokens_per_second']:,.0f} tokens/s, MFU {found['mfu']:.0%}"),
            ("memory of each", f"{format_bytes(memory)}{has}", f"float32 AdamW, {rows}{again}"),
            (
                "energy",
                format_energy(found["energy_joules"]),
                f"{found['gpu_hours']:,.1f} hours of one at full load, no cooling",
            ),
            ("cost", f"${found['cost_usd']:,.2f}", f"at ${found['usd_per_gpu_hour']:.2f} an hour"),
        ]
    )


def _write_plan(model: str, chosen: dict[str, Any], output: Path, overwrite: bool) -> None:
    from deepen.output import new_file
    from deepen.plan import plan as make_plan

    with new_file(output, overwrite=overwrite) as partial:
        partial.write_text(make_plan(model, **chosen).to_yaml(), encoding="utf-8")


def doctor(json: options.Json = False) -> None:
    """Say what this machine can do, and what to install for what is missing."""
    from deepen.doctor import doctor as examine

    found = examine()
    if json:
        print_json(found)
        return
    memory, disk, cpu = found["memory"], found["disk"], found["cpu"]
    gpus = [_gpu(gpu["name"], gpu["memory_bytes"]) for gpu in found["gpus"]] or ["none (no GPU that nvidia-smi knows)"]
    print_table(
        [
            ("deepen", f"{found['versions']['deepen']} on Python {found['versions']['python']}, {found['system']}"),
            ("processor", f"{cpu['model']}, {cpu['cores']} cores"),
            *(("accelerator", gpu) for gpu in gpus),
            ("memory", f"{format_bytes(memory['available_bytes'])} free of {format_bytes(memory['total_bytes'])}"),
            ("disk", f"{format_bytes(disk['free_bytes'])} free of {format_bytes(disk['total_bytes'])} at {disk['path']}"),
        ]
    )
    print_text("")
    print_table(
        [
            (
                name,
                "yes" if ability["ready"] else "no",
                ability["uses"] if ability["ready"] else f"install: {ability['install']}",
            )
            for name, ability in found["abilities"].items()
        ],
        ("can", "ready", ""),
    )


def _gpu(name: str, memory_bytes: int | None) -> str:
    return name if memory_bytes is None else f"{name}, {format_bytes(memory_bytes)}"


def scale(
    model: options.Model,
    out: options.Out,
    drop: options.Drop = None,
    layers: options.Layers = None,
    repeat: options.Repeat = None,
    expand: options.Expand = None,
    plan: options.PlanFile = None,
    identity_init: options.IdentityInit = False,
    as_: options.As = None,
    max_position_embeddings: Annotated[
        int | None, typer.Option(metavar="N", help="Context length to write with --as; 4096 unless given.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="keep, bfloat16, float16 or float32; converted while streaming.")
    ] = "keep",
    shard_size: options.ShardSize = 5 * 10**9,
    to: Annotated[str | None, typer.Option(metavar="hf", help="Turn a GGUF into a checkpoint folder.")] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Make a model deeper: copy the bytes of its layers as a plan says."""
    from deepen.scale import scale as make

    written = make(
        model, out, drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init,
        as_=as_, max_position_embeddings=max_position_embeddings, dtype=dtype, shard_size=shard_size, to=to,
        overwrite=overwrite,
    )  # fmt: skip
    print_path(written, json=json)


def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="An output of scale.")],
    source: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model it was made from; its tensors are hashed too.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Prove that every tensor is as the manifest says, and so back to the base; exit code 1 if one is not."""
    from deepen.verify import verify as check

    found = check(out, source)
    if json:
        print_json(found)
    else:
        print_text(f"{found.equal} of {found.tensors} tensors are as the manifest says")
        for kind in ("different", "missing", "unexpected"):
            names = getattr(found, kind)
            for name in names[:_NAMES_SHOWN]:
                print_text(f"{kind}: {name}")
            if len(names) > _NAMES_SHOWN:
                print_text(f"{kind}: … and {len(names) - _NAMES_SHOWN} more")
        for link in found.chain:
            names = f": {', '.join(link.different[:_NAMES_SHOWN])}" if link.different else ""
            print_text(f"made from {link.model}{f' ({link.verb})' if link.verb else ''}: {link.status}{names}")
    if not found.ok:
        raise typer.Exit(1)


def merge(
    out: options.Out,
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Two or more checkpoint folders or Hub ids of one architecture.")
    ],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="average, or slerp (two models, on the sphere between them).")
    ] = "average",
    weights: Annotated[
        Any,
        typer.Option(
            parser=numbers,
            metavar="W,W",
            show_default=False,
            help="Shares of an average, such as 0.5,0.5; divided by their sum. Equal unless given.",
        ),
    ] = None,
    t: Annotated[float, typer.Option("--t", metavar="T", help="slerp: 0 is the first model, 1 the second.")] = 0.5,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="keep (the first model's types), bfloat16, float16 or float32.")
    ] = "keep",
    shard_size: options.ShardSize = 5 * 10**9,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Merge models of one architecture; the tokenizer and configuration are the first one's."""
    from deepen.merge import merge as make

    written = make(out, models, method=method, weights=weights, t=t, dtype=dtype, shard_size=shard_size, overwrite=overwrite)
    print_path(written, json=json)
