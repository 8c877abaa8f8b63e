"""How fast does `open_corpus` make text into memory-mapped tokens, and with how much memory? Against a naive loop.

The texts of a folder make one file; repeated, they make a large one. Both are tokenised as one document. The naive loop is what
a script does at first: it gives the tokenizer one line after the other, in one process and thread. `encode_batch` is the
tokenizer's own way to use all cores, on pieces that are not joined again. Both run over the small file only. Each runs in a
fresh process, in turn, and the best of the runs counts, since other work on the machine can only make them slower. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from deepen.units import format_bytes, parse_bytes

HERE = Path(__file__).resolve().parent
NAIVE, BATCHES = "naive loop", "encode_batch, all cores"
PIECES, SMALL, LARGE, AGAIN = "open_corpus, not by words", "open_corpus", "open_corpus, large file", "open_corpus, again"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def by_line(file: Path, tokenizer: Any) -> int:
    """The naive loop."""
    ids: list[int] = []
    with file.open(encoding="utf-8", newline="") as stream:
        for line in stream:
            ids += tokenizer(line, add_special_tokens=False)["input_ids"]
    return len(ids)


def by_batch(file: Path, tokenizer: Any) -> int:
    """Pieces of the size that deepen reads, many at once."""
    text = file.read_text(encoding="utf-8")
    pieces = [text[begin : begin + (1 << 18)] for begin in range(0, len(text), 1 << 18)]
    groups = [pieces[begin : begin + 8] for begin in range(0, len(pieces), 8)]
    return sum(len(ids) for group in groups for ids in tokenizer(group, add_special_tokens=False)["input_ids"])


def by_pieces(file: Path, tokenizer: Any) -> int:
    """What `open_corpus` does with a tokenizer that cannot be asked for words: pieces, joined again; without writing."""
    from deepen.data.encode import open_encoder, tokenise
    from deepen.data.sources import find_sources, read_pieces

    (source,) = find_sources(file)
    parts = tokenise(read_pieces(source.files, "text"), open_encoder(tokenizer, by_words=False))
    return sum(len(part.ids) for part in parts)


def by_deepen(file: Path, tokenizer: Any) -> int:
    """`open_corpus`, with its cache beside the file."""
    from deepen.data.corpus import open_corpus

    return len(open_corpus(file, tokenizer, cache=file.parent / "cache").tokens)


WAYS: dict[str, tuple[Callable[[Path, Any], int], str]] = {
    NAIVE: (by_line, "small.txt"),
    BATCHES: (by_batch, "small.txt"),
    PIECES: (by_pieces, "small.txt"),
    SMALL: (by_deepen, "small.txt"),
    LARGE: (by_deepen, "large.txt"),
    AGAIN: (by_deepen, "large.txt"),
}


def measure(name: str, work: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """One run, in this process, which should be a fresh one."""
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer("warm")
    function, file = WAYS[name]
    before, load = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, os.getloadavg()[0]
    start, cpu_start = time.perf_counter(), time.process_time()
    tokens = function(work / file, tokenizer)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    size = (work / file).stat().st_size
    return {
        "name": name, "bytes": size, "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds,
        "bytes_per_second": size / seconds, "bytes_per_cpu_second": size / cpu_seconds,
        "idle_bytes": before, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "load_average": load,
    }  # fmt: skip


def is_right(work: Path, tokenizer_folder: Path) -> bool:
    """Whether the tokens in the cache are those of the small file in one piece."""
    from deepen.data.corpus import open_corpus

    tokenizer = load_tokenizer(tokenizer_folder)
    file = work / "small.txt"
    found = open_corpus(file, tokenizer, cache=work / "cache").tokens
    text = file.read_bytes().decode("utf-8-sig")
    return bool(found.tolist() == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fresh process; the naive loop has one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if NAIVE in arguments else "true"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make_files(work: Path, folder: Path, size: int) -> None:
    """`small.txt`: the texts of a folder; `large.txt`: as often as makes `size` bytes."""
    texts = sorted(path for path in folder.rglob("*.txt") if path.name != "SOURCE.txt")
    if not texts:
        sys.exit(f"error: no .txt files in {folder}; name a folder with --text")
    data = b"".join(path.read_bytes() for path in texts)[:size]
    data = data.decode("utf-8", errors="ignore").encode()
    (work / "small.txt").write_bytes(data)
    with (work / "large.txt").open("wb") as stream:
        for _ in range(max(1, size // len(data))):
            stream.write(data)


def benchmark(work: Path, tokenizer_folder: Path, repeat: int) -> dict[str, Any]:
    """All runs, interleaved, the best of each, and whether the tokens are right."""
    runs: list[dict[str, Any]] = []
    for turn in range(repeat):
        for name in WAYS:
            if name in {SMALL, LARGE}:
                shutil.rmtree(work / "cache", ignore_errors=True)
            print(f"{name} …", file=sys.stderr)
            runs.append({"turn": turn, **aside(measure, name, work, tokenizer_folder)})
    best = {name: min((run for run in runs if run["name"] == name), key=lambda run: run["seconds"]) for name in WAYS}
    ratios = {
        f"{SMALL} / {NAIVE}": best[SMALL]["bytes_per_second"] / best[NAIVE]["bytes_per_second"],
        f"{SMALL} / {BATCHES}": best[SMALL]["bytes_per_second"] / best[BATCHES]["bytes_per_second"],
        f"{PIECES} / {BATCHES}": best[PIECES]["bytes_per_second"] / best[BATCHES]["bytes_per_second"],
        f"{LARGE} / {NAIVE}": best[LARGE]["bytes_per_second"] / best[NAIVE]["bytes_per_second"],
    }
    targets = {
        "at least 5 MB per second": best[LARGE]["bytes_per_second"] >= 5e6,
        "the large file takes at most 100 MB more memory than the small one": (
            best[LARGE]["peak_bytes"] - best[SMALL]["peak_bytes"] <= 10**8
        ),
    }
    return {
        "right": aside(is_right, work, tokenizer_folder), "ratios": ratios, "targets": targets, "best": best, "runs": runs
    }  # fmt: skip


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    host = result["machine"]
    lines = [
        "# Text to tokens", "",
        f"{result['date']}, `{result['command']}`", "",
        f"- {host['cpu']}, {host['cores']} cores, {format_bytes(host['memory_bytes'])} of memory",
        f"- deepen {host['deepen']}, Python {host['python']}, tokenizers {host['tokenizers']},"
        f" transformers {host['transformers']}",
        f"- {result['tokenizer']}; the best of {result['repeat']} interleaved runs, each in a fresh process", "",
        "| | text | MB/s | each run | MB per CPU second | peak resident | before | load average |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in result["best"].items():
        each = ", ".join(f"{run['bytes_per_second'] / 1e6:.2f}" for run in result["runs"] if run["name"] == name)
        lines.append(
            f"| {name} | {format_bytes(row['bytes'])} | {row['bytes_per_second'] / 1e6:.2f} | {each} |"
            f" {row['bytes_per_cpu_second'] / 1e6:.2f} | {format_bytes(row['peak_bytes'])} |"
            f" {format_bytes(row['idle_bytes'])} | {row['load_average']:.1f} |"
        )
    lines += ["", *(f"- {name}: {ratio:.2f}" for name, ratio in result["ratios"].items()), ""]
    lines += [f"- {name}: **{'met' if met else 'missed'}**" for name, met in result["targets"].items()]
    lines += [f"- the tokens are those of the text in one piece: {'yes' if result['right'] else 'NO'}"]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """The hardware and the versions."""
    from deepen.doctor import doctor

    found = doctor()
    return {
        "cpu": found["cpu"]["model"], "cores": found["cpu"]["cores"], "memory_bytes": found["memory"]["total_bytes"],
        "python": platform.python_version(), "deepen": found["versions"]["deepen"],
        "tokenizers": version("tokenizers"), "transformers": version("transformers"),
    }  # fmt: skip


def main() -> None:
    """Run the benchmark as the options say; exit code 1 if the tokens are wrong, whatever the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a checkpoint folder with a tokenizer, such as demo/base")
    parser.add_argument("--text", type=Path, default=HERE.parents[1] / "shared" / "data" / "text", help="folder of .txt files")
    parser.add_argument("--size", default="150MB", help="bytes of the large file")
    parser.add_argument("--repeat", type=int, default=1, help="times that each way runs, in turn")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="scratch folder")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the result files go")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    options = parser.parse_args()
    work = options.work.absolute() / "tokenise"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        make_files(work, options.text, parse_bytes(options.size))
        result = {
            "date": date.today().isoformat(),
            "command": f"python benchmarks/tokenise.py TOKENIZER --size {options.size} --repeat {options.repeat}",
            "tokenizer": f"tokenizer of {len(load_tokenizer(options.tokenizer)):,} tokens",
            "repeat": options.repeat,
            "machine": aside(machine),
            **benchmark(work, options.tokenizer.absolute(), options.repeat),
        }
    finally:
        shutil.rmtree(work)
    options.results.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (options.results / f"tokenise-{options.size}-{result['date']}.{suffix}").write_text(text)
    print(json.dumps(result, indent=2) if options.json else report(result))
    sys.exit(0 if result["right"] else 1)


if __name__ == "__main__":
    main()
