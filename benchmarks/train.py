"""Tokens per second and peak memory of a training step: deepen, a bare transformers loop, and TRL's SFTTrainer, in one run.

    python benchmarks/train.py --model CHECKPOINT --data text.txt              # full fine-tuning in float32 on this CPU
    python benchmarks/train.py --shape 1.7b --device cuda --compile            # random weights of SmolLM2-1.7B's shape; also 7b
    python benchmarks/train.py --shape tiny                                    # seconds: shows that the script works

All train the same packed rows, two of `--length` tokens per step, one after the other, with AdamW. Each runs in a process of
its own, in turn; the median step counts, the first one is left out. With `--peak-tflops` the model FLOPs utilisation is given:
6 FLOPs per parameter and token, and those of the attention (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Writes
`benchmarks/results/train-NAME-DATE.{json,md}`. TRL is in the development environment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from deepen.doctor import doctor

HERE = Path(__file__).parent
BATCH_ROWS = 2
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512},
    "1.7b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 49152,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
}  # fmt: skip
CONTENDERS = ("deepen", "bare loop", "TRL")


def rows_of(setting: dict[str, Any]) -> Any:
    """The packed rows that everybody trains on, shape (rows, length)."""
    import numpy as np

    count = setting["steps"] * BATCH_ROWS
    if setting["data"] is None:
        return np.random.default_rng(0).integers(0, setting["vocabulary"], (count, setting["length"]))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting["model"])
    text = Path(setting["data"]).read_text(encoding="utf-8")[: 12 * count * setting["length"]]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids[: count * setting["length"]]).reshape(count, setting["length"])


def run_deepen(setting: dict[str, Any]) -> list[float]:
    """The product's own loop, with what `deepen pretrain` puts around it."""
    import torch

    from deepen.checkpoint import open_checkpoint
    from deepen.train.learns import prepare
    from deepen.train.loop import Run, train
    from deepen.train.metrics import read_rows
    from deepen.train.network import load_network, speed_up
    from deepen.train.sequences import micro_batches, sequence, token_loss
    from deepen.train.state import begin

    device = torch.device(setting["device"])
    precision = "float32" if device.type == "cpu" else "bfloat16"
    network = load_network(open_checkpoint(Path(setting["model"])), setting["device"], precision=precision, sharded=False)
    network, learners = prepare(network, "all", None, new_factor=1.0, rank=16, seed=0)
    speed_up(network, compile=setting["compile"], activation_checkpointing=False)
    rows = rows_of(setting)

    def batches(step: int) -> Any:
        chosen = rows[step * BATCH_ROWS : (step + 1) * BATCH_ROWS]
        labels = [[*row[1:].tolist(), -100] for row in chosen]
        import numpy as np

        return micro_batches([sequence(row, np.array(label)) for row, label in zip(chosen, labels, strict=True)], 1, device)

    with tempfile.TemporaryDirectory() as folder:
        begin(Path(folder), {}, resume=True)
        train(
            network, batches=batches, loss=lambda model, batch: token_loss(model, batch, None), learns=learners,
            run=Run(
                folder=Path(folder), steps=setting["steps"], tokens=lambda step: step * BATCH_ROWS * setting["length"],
                rate=lambda _: 1e-5, validate=lambda: {"validation_loss": 0.0}, every=10**6, save_every=10**6, seed=0,
                device=device, precision=getattr(torch, precision),
            ),
        )  # fmt: skip
        return [row["seconds"] for row in read_rows(Path(folder) / "metrics.jsonl") if "loss" in row]


def run_bare(setting: dict[str, Any]) -> list[float]:
    """Forward with labels, backward, clip, AdamW; transformers' own loss."""
    import torch
    from transformers import AutoModelForCausalLM

    device = torch.device(setting["device"])
    model = AutoModelForCausalLM.from_pretrained(setting["model"], dtype=torch.float32).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    rows = torch.from_numpy(rows_of(setting)).long()
    seconds = []
    for step in range(setting["steps"]):
        start = time.perf_counter()
        for row in rows[step * BATCH_ROWS : (step + 1) * BATCH_ROWS]:
            tokens = row[None].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss / BATCH_ROWS
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds


def run_trl(setting: dict[str, Any]) -> list[float]:
    """TRL's SFTTrainer on the same rows, as they are: no packing, no padding, no activation checkpointing."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    clock, on_cpu = Clock(), setting["device"] == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_steps=setting["steps"], per_device_train_batch_size=1,
            gradient_accumulation_steps=BATCH_ROWS, max_length=setting["length"], packing=False, learning_rate=1e-5,
            bf16=not on_cpu, use_cpu=on_cpu, activation_checkpointing=False, report_to="none", save_strategy="no",
            logging_steps=1, disable_tqdm=True, optim="adamw_torch_fused", torch_compile=setting["compile"],
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(setting["model"], dtype=torch.float32)
        rows = Dataset.from_dict({"input_ids": rows_of(setting).tolist()})
        SFTTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


def measure(setting: dict[str, Any]) -> dict[str, Any]:
    """One contender in this process."""
    import torch

    run = {"deepen": run_deepen, "bare loop": run_bare, "TRL": run_trl}[setting["name"]]
    seconds = run(setting)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if setting["device"] != "cpu":
        peak = torch.cuda.max_memory_allocated()
    return {"name": setting["name"], "seconds": seconds, "peak_bytes": peak}


def make_model(shape: str, folder: Path) -> int:
    """Random weights of a shape, and a tokenizer, since TRL wants one; returns the size of the vocabulary."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=8192, **SHAPES[shape])
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(config.vocab_size)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="0", pad_token="1").save_pretrained(folder)
    return int(config.vocab_size)


def flops_per_token(model: Path, length: int) -> float:
    """Of a forward and a backward pass: 6 per parameter that is multiplied, 12 per layer, feature and position attended to."""
    from deepen.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    parameters = sum(tensor.parameters for tensor in checkpoint.tensors.values())
    config = checkpoint.config
    embedding = config["vocab_size"] * config["hidden_size"] * (not config.get("tie_word_embeddings", False))
    attention = 12 * config["num_hidden_layers"] * config["hidden_size"] * length / 2
    return float(6 * (parameters - embedding) + attention)


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    setting, machine = result["setting"], result["machine"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    lines = [
        f"# A training step: {result['name']}\n\n{result['date']}, `{result['command']}`\n",
        f"- {machine['cpu']['model']}, {machine['cpu']['cores']} cores, {gpus}; load average {result['load']}",
        f"- {', '.join(f'{key} {value}' for key, value in result['versions'].items())}",
        f"- {BATCH_ROWS} rows of {setting['length']} tokens per step, one after the other; {setting['steps']} steps,"
        f" {result['repeat']} times in turn; medians without the first step\n",
        "| | tokens/s | to the bare loop | to TRL | peak memory |" + (" MFU |" if result["mfu"] else ""),
        "|---|---|---|---|---|" + ("---|" if result["mfu"] else ""),
    ]
    rates = result["tokens_per_second"]
    for name in CONTENDERS:
        cells = [name, f"{rates[name]:.1f}", *(f"{rates[name] / rates[other]:.2f}" for other in ("bare loop", "TRL"))]
        cells.append(f"{result['peak_bytes'][name] / 1e9:.2f} GB")
        cells += [f"{result['mfu'][name]:.1%}"] if result["mfu"] else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure in turn, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16, dense: 989 for an H100 or H200")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print("RESULT " + json.dumps(measure(json.loads(words.one))))
        return
    if (words.model is None) == (words.shape is None):
        parser.error("give either --model or --shape")
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = make_model(words.shape, Path(folder)) if words.shape else 0
        model = Path(folder) if words.shape else words.model
        data = None if words.shape else str(words.data or parser.error("--model needs --data"))
        setting = {
            "model": str(model), "data": data, "vocabulary": vocabulary, "device": words.device, "compile": words.compile,
            "length": words.length, "steps": words.steps,
        }  # fmt: skip
        runs = []
        for _ in range(words.repeat):
            for name in CONTENDERS:
                command = [sys.executable, __file__, "--one", json.dumps({**setting, "name": name})]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
                runs.append(json.loads(line.removeprefix("RESULT ")))
                print(f"{name}: {runs[-1]['seconds']}", file=sys.stderr)
        flops = flops_per_token(model, words.length)
    seconds = {
        name: statistics.median(each for run in runs if run["name"] == name for each in run["seconds"][1:])
        for name in CONTENDERS
    }
    rates = {name: BATCH_ROWS * words.length / each for name, each in seconds.items()}
    machine = doctor()
    name = words.shape or words.model.name
    shown = [word if not Path(word).exists() else Path(word).name for word in sys.argv[1:]]
    result = {
        "name": name,
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/train.py", *shown]),
        "setting": {key: value for key, value in setting.items() if key not in ("model", "data")},
        "repeat": words.repeat,
        "machine": {key: machine[key] for key in ("cpu", "gpus")},
        "versions": {key: machine["versions"][key] for key in ("torch", "transformers")},
        "load": round(os.getloadavg()[0], 1),
        "tokens_per_second": rates,
        "peak_bytes": {name: max(run["peak_bytes"] for run in runs if run["name"] == name) for name in CONTENDERS},
        "mfu": {name: rate * flops / words.peak_tflops / 1e12 for name, rate in rates.items()} if words.peak_tflops else None,
        "runs": runs,
    }
    words.results.mkdir(parents=True, exist_ok=True)
    file = words.results / f"train-{name}-{result['date']}"
    file.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
