"""Each verb that writes, as a command on tiny real models: its words, what it writes, and what of that is told by the clock."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exportable
import trainable
from deepen.checkpoint.manifest import read_manifest
from marbles import problem

# what differs between two runs that nothing disturbed: times, energy and rates
_CLOCK = re.compile(
    r"seconds|joules|watt|created|started|finished|per_second|date|duration|grams|co2|peak|memory|manifest_sha256"
)
_TRAIN = "--learning-rate 1e-2 --every 2 --save-every 2"


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        words: of the command line; `{url}` is an endpoint of OpenAI's protocol.
        outputs: what it writes, relative to where it runs.
    """

    words: str
    outputs: tuple[str, ...]


def prepare(folder: Path) -> None:
    """Two models of one shape and one that can be exported, texts, chats, pairs, requests, documents and a recipe."""
    trainable.write_checkpoint(folder / "base", num_hidden_layers=3)
    trainable.write_checkpoint(folder / "other", num_hidden_layers=3, initializer_range=0.1)
    exportable.write_checkpoint(folder / "exportable")
    trainable.write_text(folder / "text.txt", 400)
    trainable.write_text(folder / "held_out.txt", 120, seed=1)
    words = ("red", "green", "blue", "white")
    write(
        folder / "chats.json",
        [{"instruction": f"Say {a} {b}.", "input": "", "output": f"{a} {b}"} for a in words for b in words],
    )
    pairs = [{"prompt": f"{n % 7} {words[n % 4]} ", "chosen": words[n % 4], "rejected": words[(n + 1) % 4]} for n in range(20)]
    write(folder / "pairs.json", pairs)
    rows = [json.dumps(problem(crate)) for crate in range(4)]
    (folder / "seeds.jsonl").write_text("\n".join(rows) + "\n")
    requests = [
        {
            "custom_id": f"{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"Crate{n} red blue"}], "seed": n},
        }
        for n in range(6)
    ]
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in requests))
    (folder / "docs").mkdir()
    chosen = random.Random(0)
    for number in range(4):
        text = " ".join(chosen.choices(words, k=60))
        (folder / "docs" / f"{number}.md").write_text(f"# Refund {number}\n\nA refund takes {number + 3} days. {text}.\n")
    (folder / "recipe.yaml").write_text(RECIPE)


RECIPE = """
name: tiny
base: base
stages:
  - {stage: scale, drop: 1}
  - {stage: pretrain, data: text.txt, tokens: 128, sequence_length: 32, batch_tokens: 64, validation: held_out.txt,
     validation_tokens: 64, every: 2}
"""


def write(file: Path, content: Any) -> None:
    """Write JSON."""
    file.write_text(json.dumps(content))


VERBS = {
    "scale": Verb("scale base out --drop 1 --shard-size 20kB", ("out",)),
    "merge": Verb("merge out base other --method slerp", ("out",)),
    "export": Verb("export exportable out.gguf --quantize Q8_0", ("out.gguf", "out.gguf.deepen.json")),
    "pretrain": Verb(
        f"pretrain base out --data text.txt --tokens 256 --sequence-length 32 --batch-tokens 64 {_TRAIN}", ("out",)
    ),
    "instruct": Verb(
        f"instruct base out --data chats.json --template solar --sequence-length 128 --batch-rows 4 {_TRAIN}", ("out",)
    ),
    "align": Verb(f"align base out --data pairs.json --template solar --sequence-length 64 --batch-rows 6 {_TRAIN}", ("out",)),
    "explore": Verb("explore base --data text.txt --out out --add 2 --tokens 512 --window 64 --keep 2", ("out",)),
    "evaluate": Verb("evaluate base --data text.txt --window 64 --tokens 512 --out out", ("out",)),
    "batch": Verb("batch marbles in.jsonl out.jsonl --engine {url} --parallel 1 --greedy", ("out.jsonl",)),
    "synthesize": Verb(
        "synthesize out.jsonl --seeds seeds.jsonl --endpoint {url} --kinds answer,backward --pairs pairs.jsonl --parallel 1",
        ("out.jsonl", "pairs.jsonl", "out.report.json", "out.report.md"),
    ),
    "support": Verb("support marbles refund? --docs docs --index index.sqlite --engine {url}", ("index.sqlite",)),
    "run": Verb("run recipe.yaml", ("runs",)),
}


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """What was written, by path, without what the clock tells."""
    found = {}
    for name in names:
        path = folder / name
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        shown = {each.relative_to(folder).as_posix(): each for each in files}
        found |= {name: timeless(each) for name, each in shown.items() if not _claims_nothing(name, each)}
    return found


def _claims_nothing(name: str, file: Path) -> bool:
    """What is hidden; the record of a stage that has begun; a run's report, which is drawn again from the records beside it."""
    if "/." in name or file.stem == "report":
        return True
    content = json.loads(file.read_bytes()) if file.suffix == ".json" else None
    return isinstance(content, dict) and content.items() >= {"result": None, "output": None}.items()


def timeless(file: Path) -> bytes:
    """The bytes of a file without what the clock tells."""
    data = file.read_bytes()
    if file.name.endswith("deepen.json"):
        read_manifest(file)  # its own hash
    if file.suffix == ".json":
        return json.dumps(_without_clock(json.loads(data))).encode()
    if file.name == "metrics.jsonl":
        return "\n".join(json.dumps(_without_clock(json.loads(line))) for line in data.decode().splitlines()).encode()
    if file.suffix == ".sqlite":
        return _dump(file)
    if file.suffix in {".md", ".html"}:
        lines = data.decode().splitlines()
        return "\n".join(line for line in lines if not re.search(r"\d+(\.\d+)? ?(s|ms|min|seconds|J|kJ|MB/s)\b", line)).encode()
    if file.suffix == ".png":
        return data[:8] + data[-8:]  # a picture of seconds among other things; that it is whole is what counts
    return data


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        clocked = value.get("files")
        kept = {key: _without_clock(each) for key, each in value.items() if not _CLOCK.search(str(key))}
        if isinstance(clocked, dict):  # hashes of files that hold times
            timed = (".md", ".jsonl", ".png", ".html")
            kept["files"] = {name: None if name.endswith(timed) else each for name, each in clocked.items()}
        return kept
    return [_without_clock(each) for each in value] if isinstance(value, list) else value


def _dump(file: Path) -> bytes:
    database = sqlite3.connect(file)  # whoever reads it first undoes what a killed writer had begun
    try:
        (sound,) = database.execute("PRAGMA integrity_check").fetchone()
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        counts = {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
        return json.dumps([sound, counts]).encode()
    finally:
        database.close()
