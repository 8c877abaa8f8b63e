"""The benchmarks run, and what they report is what they did."""

import getpass
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

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
