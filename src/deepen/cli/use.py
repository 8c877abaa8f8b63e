"""Run: generate, serve and export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import chat, options
from deepen.cli.batch import batch
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_path, print_text
from deepen.errors import DataError, OptionError, printable
from deepen.units import format_energy, format_seconds


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    app.command(rich_help_panel="Run")(generate)
    chat.register(app)
    app.command(rich_help_panel="Run")(serve)
    app.command(rich_help_panel="Run")(batch)
    app.command(rich_help_panel="Run")(export)


@options.sharing(options.RUN)
def generate(
    model: options.Model,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to say; read from stdin unless given.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the prompt from a text file.")] = None,
    engine: options.Engine = "auto",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message before the prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Generate at most N tokens.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.7,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    stop: Annotated[list[str], typer.Option(metavar="TEXT", help="End the answer here; may be given again.")] = [],  # noqa: B006
    json_schema: Annotated[Path | None, typer.Option(metavar="FILE", help="The answer is JSON of this schema.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt without the chat template.")] = False,
    trim: options.Trim = None,
    show_prompt: Annotated[bool, typer.Option("--show-prompt", help="Print the rendered prompt on stderr.")] = False,
    draft: options.Draft = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Ask a model once and print its answer."""
    from deepen.generate import generate as answer

    def show(text: str) -> None:
        print(printable(text), end="", flush=True)

    def show_rendered(text: str) -> None:
        print(printable(text), end="\n---\n", file=sys.stderr)

    found = answer(
        model, _prompt(prompt, file), engine=engine, system=system, max_new_tokens=max_new_tokens, temperature=temperature,
        seed=seed, greedy=greedy, stop=stop, json_schema=None if json_schema is None else _schema(json_schema), raw=raw,
        trim=trim, on_prompt=show_rendered if show_prompt else None, on_text=None if json else show, draft=draft, **shared,
    )  # fmt: skip
    if json:
        print_json(found)
        return
    print()
    drafted = ""
    if found.draft_tokens is not None:
        drafted = f", {found.draft_accepted} of {found.draft_tokens} guessed tokens accepted"
    energy = "" if found.energy_joules is None else f", {format_energy(found.energy_joules)}"
    print(
        f"{found.completion_tokens} tokens in {format_seconds(found.seconds)},"
        f" {found.tokens_per_second:.1f} tokens/s, first after {format_seconds(found.first_token_seconds)}{drafted}{energy}"
        f" ({found.finish_reason})",
        file=sys.stderr,
    )


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise OptionError(
            "the prompt comes from the command line or from a file, not from both", where="--file", next="drop one"
        )
    if prompt is not None:
        return prompt
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError("not a text in UTF-8", where=file, next="convert it to UTF-8") from None
    if sys.stdin is None or sys.stdin.isatty():
        raise OptionError("there is no prompt", where="PROMPT", next='write deepen generate MODEL "your question"')
    return sys.stdin.read()


def _schema(file: Path) -> dict[str, Any]:
    from deepen.checkpoint.reader import read_json

    schema = read_json(file)
    if not isinstance(schema, dict):
        raise DataError("a JSON schema is an object", where=file, next='such as {"type": "object", "properties": …}')
    return schema


@options.sharing(options.PLAN)
def serve(
    model: options.Model,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen here; any but this machine itself needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Listen on this port; 0 takes a free one.")] = 8080,
    engine: Annotated[str, typer.Option(metavar="NAME", help="auto or llamacpp; vllm prints its command.")] = "auto",
    api_key: Annotated[list[str], typer.Option(metavar="KEY", help="Ask for this key; may be given again.")] = [],  # noqa: B006
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Ask for one of these keys, one a line.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM), for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="Conversations at once.")] = 4,
    context: options.Context = None,
    quantize: options.Quantize = None,
    draft: options.Draft = None,
    max_new_tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Longest answer.")] = 2048,
    max_body: Annotated[
        int, typer.Option(parser=options.size, metavar="SIZE", help="Largest request; 8MB unless given.", show_default=False)
    ] = 8_000_000,
    max_seconds: Annotated[float, typer.Option(metavar="S", help="Longest time for an answer.")] = 600.0,
    execute: Annotated[bool, typer.Option("--exec", help="With --engine vllm: start the command.")] = False,
    docs: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Documents that support answers from; may be given again.")
    ] = [],  # noqa: B006
    material: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Documents that the tutor makes exercises from; may be given again.")
    ] = [],  # noqa: B006
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Serve a model: OpenAI's protocol under /v1, a web page at /, the applications at /apps/, /health and /metrics."""
    from deepen.serve import Address
    from deepen.serve import serve as listen

    def show(address: Address) -> None:
        if json:
            print_json(address)
        else:
            print_text(f"{address.url}  (web page; OpenAI's protocol: {address.url}/v1, model {address.model})")
            print_text(f"{address.url}/apps/  (applications)")
            if address.api_key:
                print_text(f"api key, made for this run: {address.api_key}")
        sys.stdout.flush()

    listen(
        model, host=host, port=port, engine=engine, api_key=api_key, api_key_file=api_key_file, tls_cert=tls_cert,
        tls_key=tls_key, parallel=parallel, context=context, quantize=quantize, draft=draft, max_new_tokens=max_new_tokens,
        max_body=max_body, max_seconds=max_seconds, execute=execute, docs=docs, material=material, on_ready=show, **shared,
    )  # fmt: skip


def export(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The new file.")],
    quantize: Annotated[str, typer.Option(metavar="TYPE", help="F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0.")] = "F16",
    ollama: Annotated[bool, typer.Option("--ollama", help="Also write OUT.Modelfile, for `ollama create`.")] = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint as one GGUF file, checked against its source."""
    from deepen.checkpoint.manifest import read_manifest
    from deepen.export import export as write

    path = write(model, out, quantize=quantize, ollama=ollama, overwrite=overwrite)
    if not json:
        print_path(path, json=False)
        return
    made = read_manifest(path.with_name(f"{path.name}.deepen.json"))
    print_json(
        {
            "out": path,
            "quantize": made["options"]["quantize"],
            "bytes": path.stat().st_size,
            "seconds": made["seconds"],
            "check": made["check"],
            "modelfile": path.with_suffix(".Modelfile") if ollama else None,
        }
    )
