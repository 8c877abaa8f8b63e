"""How long does an n-gram index over text take, and how much memory? And text that is searched for rows of benchmarks?

The texts are the lines of a folder's files, repeated until there is enough, or words drawn from a vocabulary of 50,000. Three
ways, each in a fresh process on one thread, in turn; the best time and the most memory count:

- index: `build_index` over all of the text, which is held in memory;
- search: `find_matches` of the text, as rows of JSON, against an index of benchmarks;
- search text: the same of plain text, line by line.

The benchmarks are those of `--benchmarks` (folders in the Hub's layout), or 2,000 rows of random words. A hundred rows of
them are planted in the text, and all must be found. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from deepen.units import format_bytes, parse_bytes

HERE = Path(__file__).resolve().parent
INDEX, ROWS, TEXT = "index", "search", "search text"
PLANTED = 100


def random_words(seed: int, count: int) -> str:
    """Words of a vocabulary of 50,000 with the frequencies of a language: the k-th is drawn 1 / k as often as the first."""
    drawn = random.Random(seed)
    return " ".join(f"w{int(50_000 ** drawn.random())}" for _ in range(count))


def lines(folder: Path | None, size: int) -> Iterator[str]:
    """Lines of text with so many bytes in all."""
    own = [] if folder is None else [
        line for file in sorted(folder.rglob("*.txt")) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
    ]  # fmt: skip
    total = number = 0
    while total < size:
        line = own[number % len(own)] if own else random_words(number, 100)
        total, number = total + len(line.encode()) + 1, number + 1
        yield line


def benchmark_rows(benchmarks: list[str]) -> dict[str, list[str]]:
    """The texts of each benchmark."""
    from deepen.data.benchmarks import read_benchmarks

    if not benchmarks:
        return {"random": [random_words(10**9 + number, 60) for number in range(2000)]}
    return {name: [row.texts[0] for row in rows] for name, rows in read_benchmarks(benchmarks).items()}


def prepare(folder: Path, source: Path | None, size: int, benchmarks: list[str]) -> None:
    """Write the text, in both layouts, with rows of the benchmarks planted evenly."""
    from deepen.data.ngrams import words_of

    texts = [text for rows in benchmark_rows(benchmarks).values() for text in rows if len(words_of(text)) >= 13]
    planted = [texts[place * len(texts) // PLANTED] for place in range(PLANTED)]
    found = list(lines(source, size))
    for place, text in enumerate(planted):
        found[place * len(found) // PLANTED] = " ".join(text.split())
    (folder / "planted.json").write_text(json.dumps(planted))
    (folder / "text.txt").write_text("\n".join(found), encoding="utf-8")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": line}) + "\n" for line in found)


def measure(way: str, folder: Path, benchmarks: list[str]) -> dict[str, float]:
    """Seconds, the most memory of the process in bytes, and what was found."""
    from deepen.data.benchmarks import row_of
    from deepen.data.contamination import find_matches, index_benchmarks
    from deepen.data.ngrams import build_index

    if way == INDEX:
        texts = (folder / "text.txt").read_text(encoding="utf-8").splitlines()
        start = time.monotonic()
        index = build_index(texts)
        found, grams = 0, sum(len(table.hashes) for table in index.tables.values())
    else:
        rows = {
            name: [row_of(number, {"text": text}) for number, text in enumerate(texts, start=1)]
            for name, texts in benchmark_rows(benchmarks).items()
        }
        start = time.monotonic()
        known = index_benchmarks(rows)
        grams = sum(len(table.hashes) for table in known.index.tables.values())
        matches = find_matches(known, folder / ("rows.jsonl" if way == ROWS else "text.txt"))
        found = len({match.row for match in matches})
        assert found >= len(set(json.loads((folder / "planted.json").read_text()))), "a planted row was not found"
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(seconds, 2), "peak_bytes": peak, "n_grams": grams, "rows_found": found}


def main() -> None:
    """Measure and write the results beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="folder of .txt files; random words unless given")
    parser.add_argument("--benchmarks", nargs="*", default=[], help="names or folders in the Hub's layout")
    parser.add_argument("--size", default="100MB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    size = parse_bytes(options.size)
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.text, size, options.benchmarks)
        for _ in range(options.repeat):
            for way in (INDEX, ROWS, TEXT):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    found = pool.submit(measure, way, folder, options.benchmarks).result()
                before = best.get(way, found)
                best[way] = found | {
                    "seconds": min(found["seconds"], before["seconds"]),
                    "peak_bytes": max(found["peak_bytes"], before["peak_bytes"]),
                }
    facts = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "deepen": version("deepen")},
        "text": "random words" if options.text is None else options.text.name,
        "size_bytes": size,
        "repeat": options.repeat,
        "ways": best,
    }
    table = ["| | seconds | MB/s | peak memory | n-grams in the index | rows found |", "|---|---|---|---|---|---|"]
    for way, each in best.items():
        speed = f"{size / 1e6 / each['seconds']:.0f}"
        memory, grams = format_bytes(int(each["peak_bytes"])), f"{each['n_grams']:,.0f}"
        table.append(f"| {way} | {each['seconds']:.1f} | {speed} | {memory} | {grams} | {each['rows_found']:.0f} |")
    text = "\n".join(
        [f"`{' '.join(['contamination.py', *sys.argv[1:]])}`, {facts['date']}, {facts['machine']}", "", *table, ""]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"contamination-{options.size}-{facts['date']}"
    (options.out / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (options.out / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
