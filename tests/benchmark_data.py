"""The six benchmarks with a few short rows of our own, in the layouts that the Hub has, and a tiny model with a long window."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import torch
import yaml
from pyarrow import parquet

from exportable import write_checkpoint

WORDS = [*"abcdefgh", "the", "fox", "dog", "lazy", "quick", "cat", "on", "main", "12", "7"]


def phrase(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def rows_of(name: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    def row(number: int) -> dict[str, Any]:
        question = f"{phrase(rng, 2, 5)} {number}"
        options = [f"{phrase(rng, 1, 4)} {letter}" for letter in "uvwx"]
        answer = rng.randrange(4)
        match name:
            case "ai2_arc":
                choices = {"text": options, "label": ["A", "B", "C", "D"]}
                return {"id": str(number), "question": question, "choices": choices, "answerKey": "ABCD"[answer]}
            case "hellaswag":
                parts = {"activity_label": "Running", "ctx_a": f"{question}.", "ctx_b": "he", "ctx": f"{question}. he"}
                return {**parts, "endings": options, "label": str(answer), "ind": number}
            case "mmlu":
                return {"question": question, "subject": "x", "choices": options, "answer": answer}
            case "truthful_qa":
                first = {"choices": options[:2], "labels": [1, 0]}
                second = {"choices": options[: 2 + answer % 3], "labels": [1, *[0] * (1 + answer % 3)]}
                return {"question": question, "mc1_targets": first, "mc2_targets": second}
            case "winogrande":
                sentence = f"{question} so _ {phrase(rng, 1, 3)}."
                return {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": str(1 + answer % 2)}
            case _:
                return {"question": question, "answer": f"{phrase(rng, 2, 4)} #### {answer}"}

    return [row(number) for number in range(count)]


def write_set(folder: Path, configs: dict[str | None, dict[str, list[dict[str, Any]]]], *, kind: str = "parquet") -> Path:
    """A data set: a file for each split, and a README whose header lists them."""
    listed = []
    for config, splits in configs.items():
        inner = folder / config if config and len(configs) > 1 else folder
        inner.mkdir(parents=True, exist_ok=True)
        files = []
        for split, rows in splits.items():
            file = inner / f"{split}.{kind}"
            if kind == "parquet":
                parquet.write_table(pyarrow.Table.from_pylist(rows), file)
            else:
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append({"split": split, "path": str(file.relative_to(folder))})
        listed.append({"config_name": config or "default", "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\nOur own rows.\n")
    return folder


def write_benchmarks(root: Path, subjects: list[str], *, count: int = 7) -> Path:
    rng = random.Random(0)
    write_set(
        root / "ai2_arc", {"ARC-Challenge": {"train": rows_of("ai2_arc", 30, rng), "test": rows_of("ai2_arc", count, rng)}}
    )
    both = {"train": rows_of("hellaswag", 14, rng), "validation": rows_of("hellaswag", count, rng)}
    write_set(root / "hellaswag", {None: both}, kind="jsonl")
    write_set(
        root / "cais_mmlu", {each: {"test": rows_of("mmlu", 3, rng), "dev": rows_of("mmlu", 5, rng)} for each in subjects}
    )
    write_set(root / "truthful_qa", {"multiple_choice": {"validation": rows_of("truthful_qa", count, rng)}})
    both = {"train": rows_of("winogrande", 9, rng), "validation": rows_of("winogrande", count, rng)}
    write_set(root / "winogrande", {"winogrande_xl": both})
    write_set(root / "gsm8k", {"main": {"train": rows_of("gsm8k", 9, rng), "test": rows_of("gsm8k", 3, rng)}})
    return root


def write_model(folder: Path, *, window: int = 4096, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    return write_checkpoint(folder, max_position_embeddings=window, dtype=dtype, **changes)
