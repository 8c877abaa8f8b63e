"""How busy `deepen summarize` keeps the engine: its throughput against the same requests sent flat out.

    python benchmarks/summarize.py --model MODEL.gguf --text FILE [--tokens 100000] [--parallel N] [--chunk-tokens 3000]

The first `--tokens` tokens of the text are summarised once. Then every request that this took is sent again, all of them known
beforehand, to the same engines: nothing waits for anything else, which is the parallel throughput of the engine. Both are told
in tokens read and written per second; the first must be 0.9 of the second or more. SmolLM2-135M on 2 cores takes about 20
minutes for 100,000 tokens, and less than 1 GB. The result goes to `benchmarks/results/summarize-DATE.{md,json}`.
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

from deepen.apps.documents import make_document
from deepen.apps.slots import open_slots
from deepen.apps.summary import Settings, summarize_documents
from deepen.doctor import doctor
from deepen.engine import Chunk, Engine

HERE = Path(__file__).parent
ENOUGH = 0.9


class Noted:
    """An engine that keeps what it was asked, and how much was read and written.

    Args:
        engine: answers.
        asked: what all of them were asked: prompt, options, and how many tokens were written.
    """

    def __init__(self, engine: Engine, asked: list[tuple[Any, dict[str, Any]]]) -> None:
        self._engine, self._asked = engine, asked
        self.read = self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(self, prompt: Any, **options: Any) -> Any:
        """As the engine does."""
        last, pieces = Chunk(""), 0
        try:
            with closing(self._engine.stream(prompt, **options)) as chunks:
                for last in chunks:
                    pieces += bool(last.text)
                    yield last
        finally:
            written = last.completion_tokens or pieces
            self.read += last.prompt_tokens or len(self._engine.tokenize(self._engine.render(prompt)))
            self.written += written
            # sent again, it shall do no more and no less than it did here
            self._asked.append((prompt, options | {"max_new_tokens": max(1, written)}))


def flat_out(engines: Sequence[Engine], asked: Sequence[tuple[Any, dict[str, Any]]]) -> float:
    """Seconds in which the engines answer requests that are all known beforehand."""
    waiting: queue.SimpleQueue[tuple[Any, dict[str, Any]]] = queue.SimpleQueue()
    for each in asked:
        waiting.put(each)

    def work(engine: Engine) -> None:
        while True:
            try:
                prompt, options = waiting.get_nowait()
            except queue.Empty:
                return
            for _ in engine.stream(prompt, **options):
                pass

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Summarise, then send the same again."""
    text = Path(options.text).read_text(encoding="utf-8-sig")
    none: dict[str, Any] = dict.fromkeys(("device", "dtype", "quantize", "draft"))
    opening = open_slots(
        options.model,
        engine="llamacpp",
        parallel=options.parallel,
        characters=1 << 60,
        plan={},
        context=options.context,
        **none,
    )
    with opening as slots:
        tokens = slots.engines[0].tokenize(text[: 8 * options.tokens])
        text = text[: round(min(1.0, options.tokens / len(tokens)) * min(len(text), 8 * options.tokens))]
        asked: list[tuple[Any, dict[str, Any]]] = []
        noted = [Noted(engine, asked) for engine in slots.engines]
        settings = Settings(chunk_tokens=options.chunk_tokens)
        start = time.perf_counter()
        found = summarize_documents(noted, [make_document("text", text, markdown=False)], settings)
        seconds = time.perf_counter() - start
        both = sum(each.read + each.written for each in noted)
        bound = flat_out(slots.engines, asked)
    machine = doctor()
    return {
        "date": date.today().isoformat(),
        "machine": {"cores": machine["cpu"]["cores"], "cpu": machine["cpu"]["model"]},
        "model": Path(options.model).name,
        "parallel": len(noted),
        "document_tokens": found.chunks.tokens,
        "chunks": found.chunks.count,
        "calls": found.calls,
        "depth": found.depth,
        "tokens_read_and_written": both,
        "summarize": {"seconds": seconds, "tokens_per_second": both / seconds},
        "flat_out": {"seconds": bound, "tokens_per_second": both / bound},
        "share": bound / seconds,
        "enough": bound / seconds >= ENOUGH,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    machine = result["machine"]
    rows = "\n".join(
        f"| {name} | {result[key]['seconds']:.1f} | {result[key]['tokens_per_second']:.1f} |"
        for name, key in (("deepen summarize", "summarize"), ("the same requests flat out", "flat_out"))
    )
    return (
        f"# Summarising {result['document_tokens']:,} tokens\n\n{result['date']}, {machine['cores']} cores ({machine['cpu']}),"
        f" {result['model']}, {result['parallel']} requests at once, {result['chunks']} chunks, {result['calls']} calls,"
        f" depth {result['depth']}.\n\n| | seconds | tokens per second |\n|---|---|---|\n{rows}\n\n"
        f"Share of the engine's parallel throughput: {result['share']:.2f} (0.9 or more is wanted).\n"
    )


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--parallel", type=int)
    parser.add_argument("--chunk-tokens", type=int, default=3000)
    parser.add_argument("--context", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    result = measure(options)
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"summarize-{result['date']}"
    (options.results / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (options.results / f"{name}.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
