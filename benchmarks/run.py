"""How fast answers come: deepen, llama.cpp itself and a plain transformers loop, on the same file with the same settings.

    python benchmarks/run.py model.gguf --checkpoint CHECKPOINT
    python benchmarks/run.py model.gguf --tokens 8 --repeat 1 --clients 2    # a quick look, without transformers

One answer: greedy, `--tokens` tokens long, tokens divided by the seconds from the question to the last token with the model
loaded; by `deepen generate`, by `deepen serve` over HTTP (in one piece, and streamed), by xllamacpp's own
`Server.handle_chat_completions` in process (in one piece), and by `model.generate` of the checkpoint in float32. First token:
from the start of the process `deepen generate` to its first byte of text. Clients: `--clients` streamed answers at once,
tokens of all divided by the seconds until the last has come, through `deepen serve` and straight from the engine behind it,
started with the same settings. `OMP_NUM_THREADS` sets the threads of all. Each contender runs in a process of its own, in
turn, `--repeat` times; the best counts. Writes `benchmarks/results/run-NAME-DATE.{json,md}`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepen.doctor import doctor
from deepen.engine.process import thread_count

HERE = Path(__file__).parent
QUESTION = "Tell me a story about the universe."
CONTEXT = 1024
ENGINE, GENERATE, SERVE, LOOP = "xllamacpp", "deepen generate", "deepen serve", "transformers loop"
STREAMED = "deepen serve, streamed"
FIRST, THROUGH, STRAIGHT = "first token", "clients of deepen serve", "clients of the engine"


def of_xllamacpp(setting: dict[str, Any]) -> float:
    """Tokens per second of the wheel's own server object, without HTTP."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = setting["gguf"]
    parameters.n_ctx = CONTEXT
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = setting["threads"]
    parameters.cache_ram_mib = 0
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    start = time.perf_counter()
    reply = server.handle_chat_completions(question(setting))
    return float(reply["usage"]["completion_tokens"] / (time.perf_counter() - start))


def of_generate(setting: dict[str, Any]) -> float:
    """What `deepen generate` says itself."""
    words = [sys.executable, "-m", "deepen", "generate", setting["gguf"], QUESTION, "--greedy", "--json"]
    words += ["--max-new-tokens", str(setting["tokens"]), "--context", str(CONTEXT)]
    return float(json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)["tokens_per_second"])


def of_serve(setting: dict[str, Any]) -> float:
    """Tokens per second of one answer of `deepen serve` in one piece."""
    with serving(setting, 1) as url:
        start = time.perf_counter()
        return ask(url, None, question(setting), streamed=False) / (time.perf_counter() - start)


def of_serve_streamed(setting: dict[str, Any]) -> float:
    """Tokens per second of one streamed answer of `deepen serve`."""
    with serving(setting, 1) as url:
        start = time.perf_counter()
        return ask(url, None, question(setting)) / (time.perf_counter() - start)


def of_transformers(setting: dict[str, Any]) -> float:
    """Tokens per second of `model.generate` in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting["checkpoint"])
    model = AutoModelForCausalLM.from_pretrained(setting["checkpoint"], dtype=torch.float32)
    torch.set_num_threads(setting["threads"])
    start = time.perf_counter()
    prompt = tokenizer.apply_chat_template(question(setting)["messages"], tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=setting["tokens"], do_sample=False)
    return float((outputs.shape[1] - inputs["input_ids"].shape[1]) / (time.perf_counter() - start))


def to_first_token(setting: dict[str, Any]) -> float:
    """Seconds from the start of a process to the first byte of its answer."""
    words = [sys.executable, "-m", "deepen", "generate", setting["gguf"], QUESTION, "--greedy", "--max-new-tokens", "4"]
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    return seconds


def of_clients_through_serve(setting: dict[str, Any]) -> float:
    """Tokens per second of all clients together."""
    with serving(setting, setting["clients"]) as url:
        return of_clients(url, None, setting)


def of_clients_straight(setting: dict[str, Any]) -> float:
    """The same without the door of `deepen serve`."""
    from deepen.engine.llamacpp import start_server

    server = start_server(Path(setting["gguf"]), context=CONTEXT, parallel=setting["clients"], public=True)
    try:
        return of_clients(server.address.geturl(), server.key, setting)
    finally:
        server.close()


MEASUREMENTS = {
    ENGINE: of_xllamacpp, GENERATE: of_generate, SERVE: of_serve, STREAMED: of_serve_streamed, LOOP: of_transformers,
    FIRST: to_first_token, STRAIGHT: of_clients_straight, THROUGH: of_clients_through_serve,
}  # fmt: skip


def question(setting: dict[str, Any], number: int | None = None) -> dict[str, Any]:
    """A request for an answer of exactly the wanted length: greedy, and not ended by the model."""
    content = QUESTION if number is None else f"{QUESTION} It is story number {number}."
    return {"messages": [{"role": "user", "content": content}], "max_tokens": setting["tokens"], "temperature": 0.0}


@contextmanager
def serving(setting: dict[str, Any], parallel: int) -> Iterator[str]:
    """The address of a `deepen serve` in a process of its own."""
    words = [sys.executable, "-m", "deepen", "serve", setting["gguf"], "--port", "0", "--context", str(CONTEXT)]
    with subprocess.Popen([*words, "--parallel", str(parallel)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


def ask(url: str, key: str | None, request: dict[str, Any], *, streamed: bool = True) -> int:
    """Read an answer to its end; returns the number of its tokens."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = json.dumps(request | ({"stream": True, "stream_options": {"include_usage": True}} if streamed else {}))
    connection.request("POST", "/v1/chat/completions", body, headers)
    reply, last = connection.getresponse(), b""
    for line in reply:
        last = line if b'"usage"' in line else last
    connection.close()
    return int(json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])


def of_clients(url: str, key: str | None, setting: dict[str, Any]) -> float:
    """Tokens per second of several clients that all ask at the same time."""
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda number=number: counts.append(ask(url, key, question(setting, number))))
        for number in range(setting["clients"])
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(counts) != len(threads):
        sys.exit("error: a client got no answer")
    return sum(counts) / seconds


def bars(best: dict[str, float]) -> list[dict[str, Any]]:
    """What is asked for, and what was found."""
    wanted = [(f"{name} / {ENGINE}", name, ENGINE, 0.97) for name in (GENERATE, SERVE, STREAMED)]
    wanted += [(f"{name} / {LOOP}", name, LOOP, 4.0) for name in (GENERATE, SERVE)]
    wanted += [("all clients: deepen serve / the engine", THROUGH, STRAIGHT, 0.95)]
    rows = []
    for what, one, other, bar in wanted:
        if other in best:
            ratio = best[one] / best[other]
            rows.append({"what": what, "found": ratio, "bar": f"at least {bar:g}", "met": ratio >= bar})
    first = best[FIRST]
    return [*rows, {"what": "seconds to the first token", "found": first, "bar": "at most 1.5", "met": first <= 1.5}]


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, setting = result["machine"], result["setting"]
    lines = [
        f"# Answers of {result['name']}\n\n{result['date']}, `{result['command']}`\n",
        f"- {machine['cpu']['model']}, {machine['cpu']['cores']} cores, {setting['threads']} threads; load average"
        f" {result['load']}",
        f"- {', '.join(f'{key} {value}' for key, value in result['versions'].items())}",
        f"- answers of {setting['tokens']} tokens, {setting['clients']} clients, {result['repeat']} times in turn; the best of"
        " each counts, since other work on the machine can only slow a run\n",
        "| | best | each run |\n|---|---|---|",
    ]
    for name, value in result["best"].items():
        unit = "s" if name == FIRST else "tokens/s"
        runs = ", ".join(f"{run['value']:.3g}" for run in result["runs"] if run["name"] == name)
        lines.append(f"| {name} | {value:.3g} {unit} | {runs} |")
    lines.append("\n| | found | bar | met |\n|---|---|---|---|")
    lines += [
        f"| {row['what']} | {row['found']:.2f} | {row['bar']} | {'yes' if row['met'] else 'no'} |" for row in result["bars"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure in turn, and write the result."""
    if sys.argv[1:2] == ["--one"]:
        setting = json.loads(sys.argv[2])
        print("RESULT " + json.dumps(MEASUREMENTS[setting["name"]](setting)))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the same model as a folder, for the transformers loop")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    words = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    setting = {
        "gguf": str(words.gguf.resolve()), "checkpoint": str(words.checkpoint), "tokens": words.tokens,
        "clients": words.clients, "threads": thread_count(),
    }  # fmt: skip
    names = [name for name in MEASUREMENTS if name != LOOP or words.checkpoint]
    runs = []
    for _ in range(words.repeat):
        for name in names:
            with tempfile.TemporaryFile() as log:
                command = [sys.executable, __file__, "--one", json.dumps(setting | {"name": name})]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
                log.seek(0)
                if done.returncode:
                    sys.exit(f"error: {name} failed:\n{log.read().decode(errors='replace')[-2000:]}")
            line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
            runs.append({"name": name, "value": json.loads(line.removeprefix("RESULT "))})
            print(f"{name}: {runs[-1]['value']:.3g}", file=sys.stderr)
    best = {name: (min if name == FIRST else max)(run["value"] for run in runs if run["name"] == name) for name in names}
    machine = doctor()
    shown = [Path(word).name if Path(word).is_absolute() or Path(word).exists() else word for word in sys.argv[1:]]
    result = {
        "name": words.gguf.stem,
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/run.py", *shown]),
        "setting": {key: setting[key] for key in ("tokens", "clients", "threads")},
        "repeat": words.repeat,
        "machine": {"cpu": machine["cpu"]},
        "versions": {key: machine["versions"][key] for key in ("deepen", "xllamacpp", "torch", "transformers")},
        "load": load,
        "best": best,
        "bars": bars(best),
        "runs": runs,
    }
    words.results.mkdir(parents=True, exist_ok=True)
    file = words.results / f"run-{result['name']}-{result['date']}"
    file.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
