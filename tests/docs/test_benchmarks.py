"""The benchmarks run, and what they report is what they did."""

import getpass
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exportable
from benchmark_data import write_benchmarks, write_model
from tinygguf import write_tiny_gguf
from trainable import write_checkpoint, write_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_smallest_scaling_benchmark_runs_and_reports(tmp_path):
    work, results = tmp_path / "scratch", tmp_path / "results"
    arguments = ["--size", "10MB", "--repeat", "2", "--skip-mergekit", "--json", "--work", str(work), "--results", str(results)]
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "scale.py"), *arguments], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)

    # 2 bytes x (2 x 32000 x 64 + 64 + layers x (2.5 x 64^2 + 3 x 64 x 224 + 2 x 64))
    assert result["model"] == {"hidden_size": 64, "source_bytes": 11_608_192, "output_bytes": 13_316_224}
    assert result["every_tensor_right"] == {"deepen scale": True}
    assert [(row["turn"], row["name"]) for row in result["runs"]] == [
        (turn, name) for turn in (0, 1) for name in ("cp", "deepen scale", "copy_file_range loop")
    ]
    for row in result["runs"]:
        assert 0 < row["seconds"] <= row["flushed_seconds"]
        assert 0 <= row["written_bytes"] - 13_316_224 < 100_000  # the rest is headers
    assert 10**6 < result["medians"]["deepen scale"]["peak_bytes"] <= 10**8
    assert result["targets"]["at least twice as fast as mergekit"] is None
    medians = result["medians"]
    assert result["ratios"]["deepen scale / cp"] == (
        medians["deepen scale"]["flushed_seconds"] / medians["cp"]["flushed_seconds"]
    )

    files = sorted(results.iterdir())
    assert [file.suffix for file in files] == [".json", ".md"]
    assert json.loads(files[0].read_text()) == result
    for file in files:
        text = file.read_text()
        assert str(tmp_path) not in text
        for name in (platform.node(), getpass.getuser()):
            assert not re.search(rf"\b{re.escape(name)}\b", text)
    assert list(work.iterdir()) == []  # nothing large is left


def test_a_wrong_tensor_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mistral
    import scale as benchmark

    source = tmp_path / "source"
    mistral.make_source(source, mistral.mistral_config(10**7))
    hashes = benchmark.hash_tensors(source)["hashes"]
    assert len(set(hashes.values())) == len(hashes) == 32 * 9 + 3  # a layer in the wrong place cannot go unseen
    planned = benchmark.planned_hashes(hashes)
    assert planned["model.layers.24.mlp.up_proj.weight"] == hashes["model.layers.8.mlp.up_proj.weight"]
    assert planned["model.layers.47.mlp.up_proj.weight"] == hashes["model.layers.31.mlp.up_proj.weight"]
    assert len(planned) == 48 * 9 + 3
    assert not benchmark.is_right(source, planned)
    assert benchmark.is_right(source, hashes)


@pytest.mark.nightly
def test_the_smallest_tokenising_benchmark_runs_and_reports(tmp_path):
    model = write_checkpoint(tmp_path / "model")
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "a.txt", 20_000)
    arguments = [str(model), "--text", str(tmp_path / "text"), "--size", "300kB", "--json"]
    folders = ["--work", str(tmp_path / "scratch"), "--results", str(tmp_path / "results")]
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "tokenise.py"), *arguments, *folders], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["right"] is True
    small = (tmp_path / "text" / "a.txt").stat().st_size
    for row in result["runs"]:  # the tokens are bytes
        large = "large" in row["name"] or "again" in row["name"]
        assert row["bytes"] == row["tokens"] == (300_000 // small * small if large else small)
    assert result["ratios"]["open_corpus / naive loop"] == (
        result["best"]["open_corpus"]["bytes_per_second"] / result["best"]["naive loop"]["bytes_per_second"]
    )
    assert [file.suffix for file in sorted((tmp_path / "results").iterdir())] == [".json", ".md"]
    assert list((tmp_path / "scratch").iterdir()) == []  # nothing large is left


def benchmark(script, *words, results, page=None):
    """Run a script of `benchmarks/`; its result, which is also what its Markdown was made from."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, words), "--results", str(results)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    files = sorted(results.iterdir())
    assert [file.suffix for file in files] == [".json", ".md"]
    assert run.stdout == (page or files[1]).read_text() + "\n"
    assert str(results.parent) not in files[0].read_text()
    return json.loads(files[0].read_text())


def test_the_smallest_export_benchmark_runs_and_reports(tmp_path):
    model = exportable.write_checkpoint(tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 3000)
    words = (model, "--data", text, "--windows", 1, "--positions", 40, "--repeat", 1, "--layers", 1, "--window", 64)
    result = benchmark("export.py", *words, results=tmp_path / "results")
    for row in result["times"].values():
        assert 0 < row["check_seconds"] < row["verb_seconds"] < row["seconds"]
    assert result["billion"]["weights"] == 512 * 2048 + (2 * 2048 + 2 * 256 + 3 * 5632) * 2048 + 3 * 2048
    for row in result["billion"]["runs"]:
        assert 5e7 < row["peak_anonymous_bytes"] < row["peak_bytes"]
    table = result["formats"]
    assert list(table) == ["checkpoint", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    assert table["F16"]["perplexity"] == pytest.approx(table["checkpoint"]["perplexity"], rel=1e-3)
    assert table["F16"]["divergence"] < table["Q8_0"]["divergence"] < table["Q4_0"]["divergence"]
    assert all(round(row["agreement"] * 40, 6).is_integer() for row in table.values())


def test_the_smallest_running_benchmark_runs_and_reports(tmp_path):
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", context=1024)
    checkpoint = exportable.write_checkpoint(tmp_path / "model")
    words = (gguf, "--checkpoint", checkpoint, "--tokens", 4, "--clients", 3, "--repeat", 1)
    result = benchmark("run.py", *words, results=tmp_path / "results")
    best = result["best"]
    assert list(best) == [run["name"] for run in result["runs"]]
    assert len(best) == 8
    assert all(value > 0 for value in best.values())
    assert result["bars"][0]["what"] == "deepen generate / xllamacpp"
    assert result["bars"][0]["found"] == best["deepen generate"] / best["xllamacpp"]
    assert result["bars"][-2]["found"] == best["clients of deepen serve"] / best["clients of the engine"]
    assert all(row["met"] == is_met(row) for row in result["bars"])


def test_the_smallest_benchmark_of_healing_trials_runs_and_reports(tmp_path):
    model = write_checkpoint(tmp_path / "model", num_hidden_layers=4, max_position_embeddings=512)
    text, other = write_text(tmp_path / "text.txt", 800), write_text(tmp_path / "other.txt", 400, seed=1)
    words = ["--base", model, "--train", text, "--validation", other, "--steps", 1, "--repeat", "1:3", "0:3"]
    result = benchmark("explore_trials.py", *words, "--work", tmp_path / "work", results=tmp_path / "results")
    assert set(result["trials"]) == {"1:3 copies", "0:3 copies"}
    assert result["tokens"] == 1024
    first, second = zip(*([end["value"] for end in ends] for ends in result["trials"].values()), strict=True)
    same = (first[0] < first[1]) == (second[0] < second[1])
    assert result["spearman"] == pytest.approx(1.0 if same else -1.0)
    assert result["met"] == same
    assert first != second  # another data order


def test_the_smallest_summarising_benchmark_runs_and_reports(tmp_path):
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", context=2048)
    text = write_text(tmp_path / "text.txt", 800)
    words = ["--model", gguf, "--text", text, "--tokens", 1500, "--chunk-tokens", 400, "--parallel", 2]
    result = benchmark("summarize.py", *words, results=tmp_path / "results")
    assert result["parallel"] == 2
    assert 1200 < result["document_tokens"] < 1800
    assert result["calls"] > result["chunks"] >= 4
    assert result["share"] == result["flat_out"]["seconds"] / result["summarize"]["seconds"]
    assert result["enough"] == (result["share"] >= 0.9)
    assert result["tokens_read_and_written"] > result["document_tokens"]


@pytest.mark.nightly
def test_the_smallest_evidence_is_gathered_and_told(tmp_path):
    model = write_model(tmp_path / "tiny", num_hidden_layers=6)
    text, other = write_text(tmp_path / "train.txt", 1500), write_text(tmp_path / "valid.txt", 400, seed=1)
    data = write_benchmarks(tmp_path / "eval", ["anatomy"])
    words = ["--train", text, "--validation", other, "--eval", data, "--tasks", "arc_challenge", "winogrande", "--limit", 2]
    words += ["--tokens", 192, "--seeds", 2, "--drop", 2, "--search-tokens", 512, "--sequence-length", 32, "--batch-tokens", 64]
    words += ["--validation-tokens", 128, "--work", tmp_path / "work", "--page", tmp_path / "results.md"]
    result = benchmark("evidence.py", model, *words, results=tmp_path / "results", page=tmp_path / "results.md")
    flops, runs = result["flops_per_token"], result["runs"]
    assert flops["solar"] == flops["searched"] == flops["identity"] > flops["same tokens"] == flops["same FLOPs"]
    assert [(run["name"], run["seed"]) for run in runs] == [(name, seed) for seed in (0, 1) for name in result["labels"]]
    spent = {run["name"]: run["tokens"] * flops[run["name"]] for run in runs}
    assert spent["same FLOPs"] == pytest.approx(spent["solar"], rel=64 / 192)  # whole batches
    assert {run["tokens"] for run in runs if run["name"] != "same FLOPs"} == {192}
    starts = {run["name"]: next(iter(run["curve"].values())) for run in runs}
    assert starts["identity"] == pytest.approx(starts["same tokens"], abs=1e-5)
    assert starts["solar"] != pytest.approx(starts["same tokens"], abs=1e-5)
    for name, others in result["against"].items():
        ends = {run["name"]: list(run["curve"].values())[-1] for run in runs if run["seed"] == 1}
        assert others["same tokens"][1] == pytest.approx(ends[name] - ends["same tokens"])
    assert all(run["scores"].keys() == {"arc_challenge", "winogrande"} for run in runs)
    page = (tmp_path / "results.md").read_text()
    assert page.count("against the base on the same FLOPs") == 3
    assert (tmp_path / "results.png").stat().st_size > 10_000


def is_met(row):
    kind, number = row["bar"].rsplit(" ", 1)
    return row["found"] >= float(number) if kind == "at least" else row["found"] <= float(number)
