"""Files from a stranger: sound ones are changed by their grammar and by their bytes, and read by the readers of deepen.

A reader may only accept, or refuse with an error of `deepen.errors` that says what next, in text that is safe to print. It may
not crash, take five seconds or a gigabyte, or write anything. A worker is a process with a limit on its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deepen.errors import DeepenError, printable

SECONDS, MEMORY = 5, 1 << 30
_NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, float("nan"), float("inf"),
    "", " ", "\0", "../../etc/passwd", "/etc/passwd", "..\\x", "\x1b]0;owned\x07\x1b[2J", "\u202egpj.exe", "\ud800", "x" * 3000,
    "é" * 20, "NaN", "1e999", "__class__", "{{ 7*7 }}", [], {}, [[]], [{}], [0] * 50, ["a"] * 50, [None], {"a": [1, 2]},
]  # fmt: skip
_TOKENS = [
    b"\0", b"\xff", b"\xc3(", b"{", b"}", b"[" * 2000, b"]", b'"', b"\\u0000", b":", b",", b"&a ", b"*a",
    b"!!python/object/apply:os.system ['x']",
    b"- ", b"\n", b"\t", b"? ", b"|\n", b"<<: ", b"---\n", b"0x", b"1" * 5000,
    b"\x1b[31m", b"\xef\xbb\xbf", b"NaN", b"Infinity", b"-", b"#",
]  # fmt: skip


class Kind(NamedTuple):
    """A kind of file: sound ones as bytes, how one is changed, and how it is read."""

    seeds: list[bytes]
    change: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], object]
    name: str  # of the file


def change_json(chosen: random.Random, data: bytes) -> bytes:
    """One to three changes of the tree, or of the bytes."""
    if chosen.random() < 0.25:
        return change_bytes(chosen, data)
    try:
        tree = json.loads(data)
    except ValueError:
        return change_bytes(chosen, data)
    for _ in range(chosen.choice((1, 1, 2, 3))):
        tree = _change_tree(chosen, tree)
    text = json.dumps(tree, ensure_ascii=chosen.random() < 0.5)
    if chosen.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]  # every name twice
    return text.encode("utf-8", "surrogatepass")


def change_lines(chosen: random.Random, data: bytes) -> bytes:
    """A change of some lines of JSON."""
    lines = data.split(b"\n")
    at = chosen.randrange(len(lines))
    lines[at] = change_json(chosen, lines[at])
    return b"\n".join(lines)


def change_header(chosen: random.Random, data: bytes) -> bytes:
    """A change of a safetensors file: its length, its JSON header, its data."""
    (length,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + length], data[8 + length :]
    way = chosen.random()
    if way < 0.7:
        header = change_json(chosen, header)
        length = len(header)
    elif way < 0.8:
        length = chosen.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
    elif way < 0.9:
        rest = change_bytes(chosen, rest)
    else:
        return change_bytes(chosen, data)
    return struct.pack("<Q", length) + header + rest


def change_bytes(chosen: random.Random, data: bytes) -> bytes:
    """One to four changes of the bytes: flipped, cut, doubled, replaced by what readers fear."""
    changed = bytearray(data)
    for _ in range(chosen.choice((1, 1, 2, 4))):
        at = chosen.randrange(len(changed) + 1)
        match chosen.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chosen.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + chosen.randrange(1, 40)]
            case 3:
                changed[at:at] = changed[at : at + chosen.randrange(1, 200)]
            case 4:
                changed[at:at] = chosen.choice(_TOKENS)
            case 5:
                number = chosen.choice((0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, chosen.randrange(2**16)))
                changed[at : at + 8] = struct.pack("<Q", number)
            case 6:
                changed[at : at + 4] = struct.pack("<I", chosen.choice((0, 1, 3, 8, 9, 12, 13, 2**31, 2**32 - 1)))
    return bytes(changed)


def change_yaml(chosen: random.Random, data: bytes) -> bytes:
    """A change of a value or a line of YAML, or of its bytes."""
    if chosen.random() < 0.4:
        return change_bytes(chosen, data)
    lines = data.decode().split("\n")
    at = chosen.randrange(len(lines))
    head, colon, _ = lines[at].partition(":")
    value = json.dumps(chosen.choice(_NASTY), ensure_ascii=True)
    match chosen.randrange(5):
        case 0:
            lines[at] = f"{head}{colon} {value}"
        case 1:
            lines.insert(at, lines[chosen.randrange(len(lines))])
        case 2:
            lines[at] = "  " * chosen.randrange(1, 8) + lines[at]
        case 3:
            lines[at] = f"{head}{colon} {'[' * 40}{']' * 40}"
        case 4:
            del lines[at]
    return "\n".join(lines).encode()


def _change_tree(chosen: random.Random, tree: Any) -> Any:
    if isinstance(tree, dict) and tree and chosen.random() < 0.85:
        key = chosen.choice(list(tree))
        match chosen.randrange(6):
            case 0:
                return {name: value for name, value in tree.items() if name != key}
            case 1:
                return tree | {str(chosen.choice(_NASTY)): tree[key]}
            case 2:
                return tree | {key: tree[chosen.choice(list(tree))]}
            case _:
                return tree | {key: _change_tree(chosen, tree[key])}
    if isinstance(tree, list) and tree and chosen.random() < 0.85:
        at = chosen.randrange(len(tree))
        match chosen.randrange(4):
            case 0:
                return tree[:at] + tree[at + 1 :]
            case 1:
                return tree + tree[at:]
            case _:
                return [*tree[:at], _change_tree(chosen, tree[at]), *tree[at + 1 :]]
    if type(tree) is int and chosen.random() < 0.5:
        return tree + chosen.choice((-1, 1, 8, 2**32, -tree, -2 * tree))
    if chosen.random() < 0.02:
        return json.loads("[" * 400 + "]" * 400)
    return chosen.choice(_NASTY)


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind, with sound files made in `folder`."""
    import trainable
    from deepen.batch.lines import read_tasks
    from deepen.checkpoint.gguf import open_gguf, value
    from deepen.checkpoint.manifest import manifest_text, read_manifest
    from deepen.checkpoint.reader import read_header
    from deepen.data.chat import read_conversations
    from deepen.data.preference import read_preferences
    from deepen.export.vocabulary import read_vocabulary
    from deepen.plan import describe
    from deepen.plan.file import read_plan
    from deepen.recipe import load_recipe
    from faults.verbs import RECIPE
    from tinygguf import write_tiny_gguf

    model = trainable.write_checkpoint(folder / "model", num_hidden_layers=3, hidden_size=8, intermediate_size=8)
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    tokenizer = (model / "tokenizer.json").read_bytes()
    gguf = write_tiny_gguf(folder / "tiny.gguf", hidden=64, layers=1).read_bytes()
    (folder / "shards").mkdir()
    shutil.copytree(model, folder / "shards", dirs_exist_ok=True)
    (folder / "shards" / "model.safetensors").rename(folder / "shards" / "one.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(read_header(folder / "shards" / "one.safetensors")[0], "one.safetensors"),
    }
    chats = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"instruction": "Say it", "input": "", "output": "it"},
        {"prompt": "a", "completion": "b"},
    ]
    pairs = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": chats[0]["messages"], "rejected": chats[0]["messages"]},
    ]
    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": chats[0]["messages"]}}
    plan = "source_layers: 6\nlayers: [0, 1, 2, 3, 2, 3, 4, 5]\n"
    mergekit = "merge_method: passthrough\nslices:\n  - sources:\n    - model: a\n      layer_range: [0, 4]\n  - sources:\n    - model: a\n      layer_range: [2, 6]\n"  # noqa: E501

    def in_model(name: str, place: str = "model") -> Callable[[Path], object]:
        def read(file: Path) -> object:
            shutil.copyfile(file, folder / place / name)
            return describe(folder / place, drop=1)

        return read

    def read_gguf(file: Path) -> object:
        return [value(field) for field in open_gguf(file).fields.values()]

    def read_tokenizer(file: Path) -> object:
        (folder / "vocabulary").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "vocabulary" / "tokenizer.json")
        shutil.copyfile(model / "tokenizer_config.json", folder / "vocabulary" / "tokenizer_config.json")
        return read_vocabulary(folder / "vocabulary", 257, config)

    def lines(rows: list[Any]) -> bytes:
        return "\n".join(json.dumps(row) for row in rows).encode() + b"\n"

    manifest = manifest_text({"verb": "scale", "files": {"a": "b"}, "tensors": [], "options": {"drop": 1}}).encode()
    return {
        "safetensors": Kind([weights], change_header, read_header, "a.safetensors"),
        "config": Kind([json.dumps(config).encode()], change_json, in_model("config.json"), "config.json"),
        "index": Kind(
            [json.dumps(index).encode()], change_json, in_model("model.safetensors.index.json", "shards"), "index.json"
        ),
        "tokenizer": Kind([tokenizer], change_json, read_tokenizer, "tokenizer.json"),
        "gguf": Kind([gguf, gguf[:4000]], change_bytes, read_gguf, "a.gguf"),
        "recipe": Kind([RECIPE.encode()], change_yaml, load_recipe, "recipe.yaml"),
        "plan": Kind([plan.encode(), mergekit.encode()], change_yaml, lambda file: read_plan(file, 6), "plan.yaml"),
        "manifest": Kind([manifest], change_json, read_manifest, "deepen.json"),
        "chats": Kind([lines([row] * 3) for row in chats], change_lines, lambda file: read_conversations(file), "chats.jsonl"),
        "pairs": Kind([lines([row] * 3) for row in pairs], change_lines, lambda file: read_preferences(file), "pairs.jsonl"),
        "requests": Kind([lines([request] * 2)], change_lines, lambda file: read_tasks(file.read_bytes()), "in.jsonl"),
    }


class _Hang(BaseException):
    pass


def _hang(*_: object) -> None:
    raise _Hang


def problem_of(read: Callable[[Path], object], file: Path) -> str | None:
    """What is wrong with how a file was read; None if nothing is."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(file)
    except DeepenError as error:
        text = str(error)
        if text != printable(text):
            return f"a message that steers the terminal: {text!r}"
        if error.next is None:
            return f"a message without what next: {text!r}"
    except _Hang:
        return f"took more than {SECONDS} s"
    except BaseException:
        return traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def work(seed: int, count: int, found: Path, only: list[str]) -> None:
    """Read `count` hostile files, spread over the kinds; each finding is kept in `found` with what was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="deepen-hostile-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        all_kinds = {name: kind for name, kind in kinds(folder).items() if not only or name in only}
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGALRM, _hang)
        stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115, PTH123  progress of readers
        chosen, done, seen, began = random.Random(seed), Counter[str](), Counter[str](), time.monotonic()
        place = folder / "in"
        place.mkdir()
        for number in range(count):
            name = list(all_kinds)[number % len(all_kinds)]
            kind = all_kinds[name]
            file = place / kind.name
            file.write_bytes(kind.change(chosen, chosen.choice(kind.seeds)))
            problem = problem_of(kind.read, file)
            done[name] += 1
            if sorted(os.listdir(place)) != [kind.name]:
                problem = f"files appeared: {os.listdir(place)}"
            if problem is not None:
                cause = f"{name}: {problem.strip().splitlines()[-1][:60]}"
                seen[cause] += 1
                if seen[cause] == 1:
                    shutil.copyfile(file, found / f"{len(seen)}-{seed}-{kind.name}")
                    (found / f"{len(seen)}-{seed}-{kind.name}.problem").write_text(
                        f"{name}\n{problem}", errors="backslashreplace"
                    )
            file.unlink()
            if number % 5000 == 4999:
                stderr.write(f"{number + 1:,} of {count:,} files, {len(seen)} kinds of findings\n")
        report = {"files": sum(done.values()), "by_kind": done, "findings": seen, "seconds": round(time.monotonic() - began, 1)}
        (found / f"{seed}.json").write_text(json.dumps(report | {"seed": seed}, indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """`python -m faults.hostile --count 20000 --seed 0 --found DIR [KIND…]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--found", type=Path, required=True)
    given = parser.parse_args()
    given.found.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):
        work(given.seed, given.count, given.found, given.kinds)
    report = json.loads((given.found / f"{given.seed}.json").read_text())
    print(json.dumps(report))
    sys.exit(bool(report["findings"]))


if __name__ == "__main__":
    main()
