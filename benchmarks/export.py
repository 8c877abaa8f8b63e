"""What an export costs, and what each format costs the model: seconds, memory, perplexity, agreement with the checkpoint.

    python benchmarks/export.py CHECKPOINT --data wikitext2_valid.txt --chats instruction-data.json
    python benchmarks/export.py CHECKPOINT --data TEXT --windows 2 --positions 100 --repeat 1 --layers 2    # a quick look

Time: `deepen export` to Q8_0 and to Q4_K_M, each run in a process of its own, in turn, from the start of the process to its
end. What the check of the file takes is in it, and is given besides. Memory: the same for random weights of a 1B model's
shapes (`--layers` makes it shallower), with the checkpoint's tokenizer: resident memory at its highest, and the part of it
that is not pages of files, which the system could drop. Formats: perplexity of the text in windows of `--window` tokens, by
transformers in float32 for the checkpoint and by llama.cpp for the GGUFs, and at how many positions of the text's beginning
the likeliest next token is the checkpoint's own; with `--chats` also at as many positions of conversations in the model's own
chat template. Writes `benchmarks/results/export-NAME-DATE.{json,md}`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from deepen.doctor import doctor
from deepen.engine.libllama import start_distributions

HERE = Path(__file__).parent
TIMED = {"Q8_0": 5.0, "Q4_K_M": 20.0}  # and the seconds that they may take
FORMATS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
AGREEMENT = {"F16": 0.99, "Q8_0": 0.97}
MEMORY_BYTES = 10**9
BILLION = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64}
SOURCE = "checkpoint"


def export_one(setting: dict[str, Any]) -> dict[str, Any]:
    """The verb itself in this process, with a clock around its check."""
    verb = importlib.import_module("deepen.export")
    began, inside, check = time.perf_counter(), [], verb.require_equal

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = check(*arguments)
        inside.append(time.perf_counter() - start)
        return result

    verb.require_equal = timed
    verb.export(setting["model"], setting["out"], quantize=setting["format"], overwrite=True)
    return {"verb_seconds": time.perf_counter() - began, "check_seconds": sum(inside)}


def run_one(setting: dict[str, Any]) -> dict[str, Any]:
    """`export_one` in a new process: its figures, all its seconds and, if watched, the memory of it and its children."""
    load, most = os.getloadavg()[0], {"VmRSS": 0, "RssAnon": 0}
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, __file__, "--one", json.dumps(setting)], stdout=out)
        while setting["watch"] and process.poll() is None:
            now = dict.fromkeys(most, 0)
            for fields in tree(process.pid):
                for name in most:
                    now[name] += int(fields.get(name, "0").split()[0]) * 1024
            most = {name: max(most[name], now[name]) for name in most}
            time.sleep(0.1)
        process.wait()
        seconds = time.perf_counter() - start
        out.seek(0)
        printed = out.read()
    if process.returncode:
        sys.exit(f"error: an export ended with exit code {process.returncode}")
    result = json.loads(next(line for line in printed.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
    memory = {"peak_bytes": most["VmRSS"], "peak_anonymous_bytes": most["RssAnon"]} if setting["watch"] else {}
    return {"format": setting["format"], "seconds": seconds, "load": round(load, 1)} | memory | result


def tree(root: int) -> Iterator[dict[str, str]]:
    """What the kernel says of a process and of those that it started."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in file.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue  # it has just ended
        found[int(fields["Pid"])] = fields
    inside = {root}
    for pid in sorted(found):
        if pid in inside or int(found[pid]["PPid"]) in inside:
            inside.add(pid)
            yield found[pid]


def write_billion(folder: Path, tokenizer: Path, layers: int) -> int:
    """Random bfloat16 weights of a 1B model's shapes, tensor by tensor, and a tokenizer; returns the number of weights."""
    folder.mkdir()
    config = json.loads((tokenizer / "config.json").read_text(encoding="utf-8")) | BILLION
    config |= {"num_hidden_layers": layers, "dtype": "bfloat16", "tie_word_embeddings": True}
    for file in tokenizer.iterdir():
        if file.suffix != ".safetensors" and file.is_file():
            shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shared = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner), "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (shared, hidden), "self_attn.v_proj": (shared, hidden), "self_attn.o_proj": (hidden, hidden),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    shapes |= {f"model.layers.{number}.{name}.weight": shape for number in range(layers) for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    words, random = json.dumps(header).encode(), np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(words).to_bytes(8, "little") + words)
        for shape in shapes.values():
            values = (
                random.standard_normal(shape, np.float32) * np.float32(0.02) if len(shape) > 1 else np.ones(shape, np.float32)
            )
            stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return offset // 2


def perplexity(model: Path, data: Path, window: int, windows: int) -> float:
    """Of a text's first windows: by transformers in float32, or by llama.cpp."""
    import deepen

    dtype = None if model.is_file() else "float32"
    return float(deepen.evaluate(model, data=data, window=window, limit=windows, dtype=dtype).tasks["perplexity"]["value"])


def beginning(model: Path, data: Path, positions: int) -> list[list[int]]:
    """Ids of the beginning of the text, in one window."""
    from transformers import AutoTokenizer

    text = data.read_text(encoding="utf-8")[: 12 * positions]
    ids: list[int] = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [ids[: positions + 1]]


def conversations(model: Path, chats: Path, positions: int) -> list[list[int]]:
    """Ids of the first conversations in the model's chat template, a window for each, with so many positions together."""
    from transformers import AutoTokenizer

    from deepen.data.chat import read_conversations

    tokenizer = AutoTokenizer.from_pretrained(model)
    windows: list[list[int]] = []
    for conversation in read_conversations(chats):
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        missing = positions - sum(len(window) - 1 for window in windows)
        if missing <= 0:
            break
        windows.append(ids[: missing + 1])
    return windows


def source_distributions(model: Path, windows: list[list[int]]) -> Any:
    """Natural-log probability of each next token by transformers in float32, shape (positions, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = torch.cat([source(torch.tensor([window])).logits[0, :-1] for window in windows])
        return torch.log_softmax(logits, -1).numpy()


def compare(gguf: Path, windows: list[list[int]], source: Any) -> dict[str, float]:
    """How llama.cpp's next tokens differ from the checkpoint's."""
    same, divergence = 0, 0.0
    with closing(start_distributions(gguf, windows)) as child:
        for wanted in source:
            found = child.receive()
            same += int(np.argmax(found) == np.argmax(wanted))
            divergence += float(np.exp(wanted) @ (wanted - found))
    return {"agreement": same / len(source), "divergence": divergence / len(source)}


def table_of_formats(
    model: Path, data: Path, chats: Path | None, work: Path, *, window: int, windows: int, positions: int
) -> dict[str, dict[str, float]]:
    """Size, perplexity and agreement of each format, and of the checkpoint itself."""
    import deepen

    compared = {"": beginning(model, data, positions)}
    if chats is not None:
        compared["chat_"] = conversations(model, chats, positions)
    sources = {kind: source_distributions(model, texts) for kind, texts in compared.items()}
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    own = perplexity(model, data, window, windows)
    table = {SOURCE: {"bytes": size, "perplexity": own}}
    table[SOURCE] |= {f"{kind}{name}": best for kind in compared for name, best in (("agreement", 1.0), ("divergence", 0.0))}
    for name in FORMATS:
        gguf = deepen.export(model, work / f"{name}.gguf", quantize=name)
        figures = {"bytes": gguf.stat().st_size, "perplexity": perplexity(gguf, data, window, windows)}
        for kind, texts in compared.items():
            figures |= {f"{kind}{key}": value for key, value in compare(gguf, texts, sources[kind]).items()}
        table[name] = figures
        gguf.unlink()
        print(f"{name}: {table[name]}", file=sys.stderr)
    return table


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine, billion = result["machine"], result["billion"]
    lines = [
        f"# Export of {result['name']}\n\n{result['date']}, `{result['command']}`\n",
        f"- {machine['cpu']['model']}, {machine['cpu']['cores']} cores; load average {result['load']}",
        f"- {', '.join(f'{key} {value}' for key, value in result['versions'].items())}\n",
        f"## Time, the best of {result['repeat']}\n",
        "| | from the shell | of it the check | of it writing | bar | met |\n|---|---|---|---|---|---|",
    ]
    for name, row in result["times"].items():
        met = "yes" if row["seconds"] <= TIMED[name] else "no"
        writing = row["verb_seconds"] - row["check_seconds"]
        cells = f"{row['seconds']:.1f} s | {row['check_seconds']:.1f} s | {writing:.1f} s | {TIMED[name]:g} s | {met}"
        lines.append(f"| {name} | {cells} |")
    lines += [
        f"\n## Memory: {billion['weights'] / 1e9:.2f} billion random weights\n",
        "The process and its children together. Pages of files (the GGUF that llama.cpp maps for the check, libraries) are in"
        " the first column; the system drops them when it wants their place.\n",
        "| | resident at its highest | of it not pages of files | from the shell | bar | met |\n|---|---|---|---|---|---|",
    ]
    for row in billion["runs"]:
        met = "yes" if row["peak_anonymous_bytes"] <= MEMORY_BYTES else "no"
        cells = f"{row['peak_bytes'] / 1e9:.2f} GB | {row['peak_anonymous_bytes'] / 1e9:.2f} GB | {row['seconds']:.0f} s"
        lines.append(f"| {row['format']} | {cells} | {MEMORY_BYTES / 1e9:g} GB, not pages of files | {met} |")
    setting = result["setting"]
    lines += [
        "\n## Formats\n",
        f"Perplexity of {setting['windows'] * (setting['window'] - 1):,} tokens of {setting['data']}, and agreement at"
        f" {setting['positions']:,} positions of it"
        + (f", and at as many of conversations ({setting['chats']}) in the chat template" if setting["chats"] else "")
        + ".\n",
        "| | size | perplexity | same likeliest next token | KL divergence | in conversations | bar | met, in conversations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["formats"].items():
        bar = AGREEMENT.get(name)
        found = [row[key] for key in ("agreement", "chat_agreement") if key in row]
        judged = f"{bar:.0%} | {', '.join('yes' if each >= bar else 'no' for each in found)}" if bar else "| "
        cells = f"{row['bytes'] / 1e6:.0f} MB | {row['perplexity']:.3f} | {row['agreement']:.1%} | {row['divergence']:.4f} nats"
        chats = f"{row['chat_agreement']:.1%}" if "chat_agreement" in row else ""
        lines.append(f"| {name} | {cells} | {chats} | {judged} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the result."""
    if sys.argv[1:2] == ["--one"]:
        print("RESULT " + json.dumps(export_one(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a checkpoint folder of the Llama family")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chats", type=Path, help="conversations that `deepen instruct` reads")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--layers", type=int, default=22, help="of the 1B model")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    words = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        setting = {"model": str(words.model), "out": str(work / "out.gguf"), "watch": False}
        runs = [run_one(setting | {"format": name}) for _ in range(words.repeat) for name in TIMED]
        times = {name: min((run for run in runs if run["format"] == name), key=lambda run: run["seconds"]) for name in TIMED}
        print(times, file=sys.stderr)
        weights = write_billion(work / "billion", words.model, words.layers)
        setting |= {"model": str(work / "billion"), "watch": True}
        billion = {"weights": weights, "runs": [run_one(setting | {"format": name}) for name in TIMED]}
        shutil.rmtree(work / "billion")
        (work / "out.gguf").unlink()
        formats = table_of_formats(
            words.model, words.data, words.chats, work,
            window=words.window, windows=words.windows, positions=words.positions,
        )  # fmt: skip
    machine = doctor()
    shown = [Path(word).name if Path(word).is_absolute() or Path(word).exists() else word for word in sys.argv[1:]]
    result = {
        "name": words.model.resolve().name,
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/export.py", *shown]),
        "setting": {
            "window": words.window,
            "windows": words.windows,
            "positions": words.positions,
            "layers": words.layers,
            "data": words.data.name,
            "chats": words.chats.name if words.chats else None,
        },
        "repeat": words.repeat,
        "machine": {"cpu": machine["cpu"]},
        "versions": {key: machine["versions"][key] for key in ("deepen", "xllamacpp", "gguf", "torch", "transformers")},
        "load": load,
        "times": times,
        "billion": billion,
        "formats": formats,
        "runs": runs,
    }
    words.results.mkdir(parents=True, exist_ok=True)
    file = words.results / f"export-{result['name']}-{result['date']}"
    file.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
