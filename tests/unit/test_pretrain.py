"""Continued pretraining end to end on a tiny real checkpoint: what is written, what is refused, and exact resuming."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deepen.checkpoint.manifest import read_manifest
from deepen.errors import CheckpointError, DataError, OptionError, OutputError, ResourceError, UnsupportedModelError, UserError
from deepen.train.pretrain import pretrain
from trainable import write_checkpoint, write_text

TIMED = {"tokens_per_second", "seconds"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt", 600)


def fit(model: Path, out: Path, text: Path, **changed: Any) -> Path:
    """Twelve steps of 2 x 32 tokens."""
    options: dict[str, Any] = {"tokens": 12 * 64, "sequence_length": 32, "batch_tokens": 64, "learning_rate": 1e-2, "every": 4}
    return pretrain(model, out, data=[text], **options | {"validation_tokens": 128} | changed)


def metrics(out: Path, *, timed: bool = True) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows if timed else [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_a_run_learns_and_writes_an_ordinary_checkpoint(model: Path, text: Path, tmp_path: Path) -> None:
    out = fit(model, tmp_path / "out", text, base=model)
    assert out == tmp_path / "out"
    rows = metrics(out)
    losses = [row["loss"] for row in rows if "loss" in row]
    measured = [(row["step"], row["validation_perplexity"]) for row in rows if "validation_loss" in row]
    assert len(losses) == 12
    assert [step for step, _ in measured] == [0, 4, 8, 12]
    assert np.mean(losses[-2:]) < 0.8 * losses[0]
    assert measured[-1][1] < 0.5 * measured[0][1]

    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(path.name for path in model.iterdir()), "README.md", "deepen.json", "metrics.jsonl", "recovery.png"]
    )
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes()
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "who may read one file may read all"
    manifest = read_manifest(out)
    assert (manifest["verb"], manifest["source"]["model"]) == ("pretrain", str(model))
    assert manifest["results"]["base_validation_perplexity"] == pytest.approx(measured[0][1])
    assert manifest["results"]["validation_perplexity"] == measured[-1][1]
    assert f"{measured[-1][1]:.2f} after 768 tokens" in (out / "README.md").read_text()
    assert list(tmp_path.glob(".*")) == []


def test_the_written_weights_are_the_measured_ones(model: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from deepen.data.text import pack
    from deepen.likelihood import window_losses

    held_out = write_text(tmp_path / "held_out.txt", 300, seed=1)
    out = fit(model, tmp_path / "out", text, validation=held_out)
    trained = AutoModelForCausalLM.from_pretrained(out)
    assert trained.lm_head.weight is trained.model.embed_tokens.weight
    windows = pack(np.frombuffer(held_out.read_bytes(), dtype=np.uint8)[:128].astype(np.int32) + 1, 32, where="")
    loss = window_losses(trained, torch.from_numpy(windows)).mean().item()
    assert metrics(out)[-1]["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_the_base_itself_gives_the_level_of_the_start(model: Path, text: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", num_hidden_layers=1)
    out = fit(model, tmp_path / "out", text, base=other)
    level = read_manifest(out)["results"]["base_validation_perplexity"]
    assert level == pytest.approx(257, rel=0.2)
    assert level != metrics(out)[0]["validation_perplexity"]


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_weights_are_trained_in_float32_and_written_in_the_sources_type(
    tmp_path: Path, text: Path, dtype: torch.dtype, name: str
) -> None:
    model = write_checkpoint(tmp_path / "half", dtype=dtype)
    out = fit(model, tmp_path / "out", text, learning_rate=1e-6)  # a rate whose steps are too small for half precision to see
    with safe_open(out / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {name}  # noqa: SIM118
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
    rows = [row for row in metrics(out) if "validation_loss" in row]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]


def test_the_same_command_gives_the_same_bits(model: Path, text: Path, tmp_path: Path) -> None:
    first, second = (fit(model, tmp_path / name, text) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert metrics(first, timed=False) == metrics(second, timed=False)
    other = fit(model, tmp_path / "c", text, seed=1)
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated", "ignore:The .grad attribute")  # torch's own
def test_compiled_layers_train_alike(text: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "one-layer", num_hidden_layers=1)
    plain = metrics(fit(model, tmp_path / "plain", text))
    compiled = metrics(fit(model, tmp_path / "compiled", text, compile=True))
    for name in ("loss", "gradient_norm", "validation_loss"):
        wanted = [row[name] for row in plain if name in row]
        assert [row[name] for row in compiled if name in row] == pytest.approx(wanted, rel=1e-4)


def test_held_out_rows_are_not_trained_on(model: Path, tmp_path: Path) -> None:
    """The last tenth of the data is another text; a run that saw it would get better at it."""
    file = tmp_path / "two.txt"
    file.write_text("a" * 32 * 18 + "b" * 32 * 2)
    rows = metrics(fit(model, tmp_path / "out", file, validation_tokens=64))
    assert rows[-1]["validation_loss"] > rows[0]["validation_loss"]
    assert [row for row in rows if "loss" in row][-1]["loss"] < 4


# Resuming -------------------------------------------------------------------------------------------------------------------

KILLER = """
import os, random, signal, sys
from pathlib import Path
import torch
from deepen.train.pretrain import pretrain
torch.set_num_threads(1)
model, text, folder = map(Path, sys.argv[1:4])
options = dict(data=[text], tokens=6 * 64, sequence_length=32, batch_tokens=64, learning_rate=1e-2, every=2, save_every=2)

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}

def attempt(out, survives):
    "Run in a child, which kills itself at a given file event in the partial output; the number of events, or None if killed."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        events = 0
        def count(event, arguments):
            nonlocal events
            if event in FILE_EVENTS and f".{out.name}.partial" in str(arguments[0]):
                events += 1
                if events > survives:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        pretrain(model, out, **options)
        os.write(write, str(events).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    with os.fdopen(read) as answer:
        return int(answer.read() or -1)

pretrain(model, folder / "undisturbed", **options)
total = attempt(folder / "again", 10**9)
assert total > 30, total
for survives in sorted(random.Random(0).sample(range(1, total), 15)):
    out = folder / f"killed_at_{survives}"
    assert attempt(out, survives) == -1
    assert not out.exists()
    for torn in (folder / f".{out.name}.partial" / ".training").glob("run/*.partial/*"):
        os.truncate(torn, torn.stat().st_size // 2)
    assert attempt(out, 10**9) > 0
out, survives = folder / "killed_again_and_again", 8
while not out.exists():
    attempt(out, survives)
    survives += 8
"""


def test_killed_at_any_moment_it_ends_with_the_same_bits(model: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    arguments = [sys.executable, "-c", KILLER, str(model), str(text), str(folder)]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    undisturbed = folder / "undisturbed"
    outs = sorted(folder.glob("killed*"))
    assert len(outs) == 16
    for out in outs:
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
        assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
        assert metrics(out, timed=False) == metrics(undisturbed, timed=False)
    assert list(folder.glob(".*")) == []


def interrupt(model: Path, out: Path, text: Path, after: int, **changed: Any) -> None:
    """Stop a run in its step `after`: the schedule is asked for the rate then."""
    from deepen.train import stage as module

    def rate(step: int, **schedule: Any) -> float:
        if step == after:
            raise KeyboardInterrupt
        return original(step, **schedule)

    original = module.learning_rate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "learning_rate", rate)
        with pytest.raises(KeyboardInterrupt):
            fit(model, out, text, **changed)


def test_resuming_continues_from_the_saved_step(
    model: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed = fit(model, tmp_path / "a", text)
    interrupt(model, tmp_path / "b", text, after=8, save_every=5)
    assert not (tmp_path / "b").exists()
    capfd.readouterr()
    resumed = fit(model, tmp_path / "b", text, save_every=5)
    assert "Training: 448 tokens" in capfd.readouterr().err  # 7 steps of 64
    assert load_file(resumed / "model.safetensors").keys() == load_file(undisturbed / "model.safetensors").keys()
    assert (resumed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert metrics(resumed, timed=False) == metrics(undisturbed, timed=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.01, is 0.001"),
        ({"seed": 3, "schedule": "wsd"}, "schedule was cosine, is wsd; seed was 0, is 3"),
        ({"tokens": 20 * 64}, "tokens was 768, is 1280"),
    ],
)
def test_changed_settings_are_refused_with_the_difference(
    model: Path, text: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    interrupt(model, out, text, after=8, save_every=5)
    with pytest.raises(OptionError, match=message):
        fit(model, out, text, save_every=5, **changed)
    anew = fit(model, out, text, save_every=5, resume=False, **changed)
    assert (anew / "model.safetensors").read_bytes() == (
        fit(model, tmp_path / "b", text, **changed) / "model.safetensors"
    ).read_bytes()


def test_changed_data_and_models_are_refused(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(model, out, text, after=8, save_every=5)
    with pytest.raises(OptionError, match=r"data was \w+, is \w+"):
        fit(model, out, write_text(tmp_path / "other.txt", 600, seed=9), save_every=5)
    trained = fit(model, tmp_path / "trained", text)
    with pytest.raises(OptionError, match=r"model was \w+, is \w+"):
        fit(trained, out, text, save_every=5)
    assert fit(model, out, text, save_every=5) == out  # the run that was interrupted is still there


def test_divergence_leaves_no_output(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finite"):
        fit(model, tmp_path / "out", text, learning_rate=1e30, schedule="constant")
    assert not (tmp_path / "out").exists()


# Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 0}, "--tokens: 0 is not above zero"),
        ({"tokens": "many"}, "'many' is not a count"),
        ({"batch_tokens": 50}, "50 is not a multiple of the sequence length 32"),
        ({"sequence_length": 256, "batch_tokens": 256}, "--sequence-length: the model takes 2 to 128 tokens at once, not 256"),
        ({"micro_batch": 0}, "--micro-batch: 0 is not above zero"),
        ({"every": 0}, "--every: 0 is not above zero"),
        ({"save_every": 0}, "--save-every: 0 is not above zero"),
        ({"learning_rate": 0.0}, "--learning-rate: 0.0 is not above zero"),
        ({"learning_rate": float("nan")}, "--learning-rate: nan is not above zero"),
        ({"schedule": "linear"}, "no schedule is called 'linear'"),
        ({"warmup": 13}, "13 is neither a fraction"),
        ({"precision": "float8"}, "no precision 'float8'"),
    ],
)
def test_options_out_of_range_are_refused(
    model: Path, text: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        fit(model, tmp_path / "out", text, **changed)
    assert not any(tmp_path.glob("*out*")), "nothing is begun"


def test_too_little_data_is_refused(model: Path, tmp_path: Path) -> None:
    for words, message in ((2, "tokens are too few for one row of 32"), (9, "none is left to measure on")):
        with pytest.raises(DataError, match=message):
            fit(model, tmp_path / "out", write_text(tmp_path / f"{words}.txt", words))
    with pytest.raises(DataError, match=r"2\.txt: .* tokens are too few for one row of 32"):
        fit(model, tmp_path / "out", write_text(tmp_path / "a.txt", 600), validation=tmp_path / "2.txt")


def test_models_that_cannot_be_trained_are_refused(model: Path, text: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnsupportedModelError, match="a GGUF file cannot be trained"):
        fit(gguf, tmp_path / "out", text)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedModelError, match="quantised"):
        fit(model, tmp_path / "out", text)
    (model / "config.json").write_text(json.dumps(config))
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        fit(model, tmp_path / "out", text)


def test_an_existing_output_is_refused_unless_it_may_be_replaced(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        fit(model, out, text)
    assert (out / "mine.txt").exists()
    fit(model, out, text, overwrite=True)
    assert not (out / "mine.txt").exists()


def test_too_little_disk_is_refused_before_anything_is_loaded(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage(tmp_path)
    parameters = sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values())
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: real._replace(free=28 * parameters)
    )  # weights and two states, but no rest
    with pytest.raises(ResourceError, match="needs"):
        fit(model, tmp_path / "out", text, save_every=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=29 * parameters))
    fit(model, tmp_path / "out", text, save_every=5)


# What learns, whom from, and beside whom --------------------------------------------------------------------------------


@pytest.fixture
def deep(model: Path, tmp_path: Path) -> Path:
    """Layers 0, 1, 0, 1 of the two-layer base: positions 2 and 3 are added."""
    from deepen.scale import scale

    return scale(model, tmp_path / "deep", layers="0:2,0:2", identity_init=True)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    one, other = weights_of(before), weights_of(after)
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_only_added_layers_learn_when_asked(deep: Path, text: Path, tmp_path: Path) -> None:
    out = fit(deep, tmp_path / "out", text, train="repeated")
    moved = changed(deep, out)
    assert {name.split(".")[2] for name in moved} == {"2", "3"}
    assert "model.layers.3.self_attn.q_proj.weight" in moved
    assert metrics(out)[-1]["validation_loss"] < metrics(out)[0]["validation_loss"]
    per_layer = sum(tensor.numel() for name, tensor in weights_of(deep).items() if ".layers.2." in name)
    assert read_manifest(out)["results"]["learned_parameters"] == 2 * per_layer
    assert read_manifest(out)["plan"] == read_manifest(deep)["plan"], "the next stage knows them too"


def test_the_frozen_layers_before_the_first_that_learns_have_no_graph(deep: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM

    from deepen.train.learns import prepare

    network = AutoModelForCausalLM.from_pretrained(deep)
    network, _ = prepare(network, "repeated", read_manifest(deep)["plan"], new_factor=1.0, rank=16, seed=0)
    seen: dict[int, bool] = {}
    for place, layer in enumerate(network.model.layers):
        layer.register_forward_hook(lambda _m, _i, out, place=place: seen.update({place: out.requires_grad}))
    network(input_ids=torch.ones(1, 8, dtype=torch.long))
    assert seen == {0: False, 1: False, 2: True, 3: True}


def test_adapters_are_merged_back_into_plain_weights(deep: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    held_out = write_text(tmp_path / "held_out.txt", 300, seed=1)
    out = fit(deep, tmp_path / "out", text, train="lora", lora_rank=4, validation=held_out)
    linear = {name for name in weights_of(deep) if name.endswith("_proj.weight")}
    assert changed(deep, out) <= linear, "an adapter on a projection, and nothing else"
    assert len(changed(deep, out)) == len(linear) == 4 * 7
    assert metrics(out)[-1]["validation_loss"] < metrics(out)[0]["validation_loss"]
    windows = np.frombuffer(held_out.read_bytes(), dtype=np.uint8)[:128].astype(np.int64).reshape(-1, 32) + 1
    from deepen.likelihood import window_losses

    loss = window_losses(AutoModelForCausalLM.from_pretrained(out), torch.from_numpy(windows)).mean().item()
    assert metrics(out)[-1]["validation_loss"] == pytest.approx(loss, rel=1e-5), "merged, it is what was measured"
    sizes = [tensor.shape for name, tensor in weights_of(deep).items() if name in linear]
    assert read_manifest(out)["results"]["learned_parameters"] == sum(4 * sum(shape) for shape in sizes)


def test_an_interrupted_run_with_adapters_continues(deep: Path, text: Path, tmp_path: Path) -> None:
    options = {"train": "lora", "new_layer_learning_rate": None}
    undisturbed = fit(deep, tmp_path / "a", text, **options)
    interrupt(deep, tmp_path / "b", text, after=8, save_every=5, **options)
    resumed = fit(deep, tmp_path / "b", text, save_every=5, **options)
    assert (resumed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_new_layers_may_learn_at_another_rate(deep: Path, text: Path, tmp_path: Path) -> None:
    """With a rate of almost nothing for the old layers, only the new ones move visibly."""
    out = fit(deep, tmp_path / "out", text, learning_rate=1e-12, new_layer_learning_rate=1e-2, tokens=128)
    one, other = weights_of(deep), weights_of(out)
    for name in one:
        moved = (one[name] - other[name]).abs().max().item()
        assert (moved > 1e-3) == (".layers.2." in name or ".layers.3." in name), name


def test_the_control_is_the_base_trained_alone(model: Path, deep: Path, text: Path, tmp_path: Path) -> None:
    """Found in the manifest, trained on the same rows, logged beside, and only once if the run is interrupted."""
    out = fit(deep, tmp_path / "out", text, control=True)
    alone = fit(model, tmp_path / "alone", text)
    rows = metrics(out, timed=False)
    beside = [{key: value for key, value in row.items() if key != "run"} for row in rows if row.get("run") == "control"]
    assert beside == metrics(alone, timed=False)
    results = read_manifest(out)["results"]
    assert results["control_validation_perplexity"] == beside[-1]["validation_perplexity"]
    assert results["base_validation_perplexity"] == beside[0]["validation_perplexity"]
    assert "after the same training" in (out / "README.md").read_text()
    without = fit(deep, tmp_path / "without", text)
    assert weights_of(out).keys() == weights_of(without).keys()
    assert not changed(without, out), "the control does not disturb the run"


def test_a_run_with_a_control_continues_in_either(deep: Path, text: Path, tmp_path: Path) -> None:
    undisturbed = fit(deep, tmp_path / "a", text, control=True)
    out = tmp_path / "b"
    interrupt(deep, out, text, after=8, save_every=5, control=True)  # in the control, which comes first
    with pytest.raises(OptionError, match="seed was 0, is 1"):
        fit(deep, out, text, save_every=5, control=True, seed=1)
    resumed = fit(deep, out, text, save_every=5, control=True)
    assert metrics(resumed, timed=False) == metrics(undisturbed, timed=False)
    assert not changed(undisturbed, resumed)


def test_it_ends_when_the_base_is_reached(model: Path, text: Path, tmp_path: Path) -> None:
    better = fit(model, tmp_path / "better", text)
    out = fit(model, tmp_path / "out", text, base=better, until_recovered=True, tokens=40 * 64, every=1, schedule="constant")
    rows = [row for row in metrics(out) if "validation_loss" in row]
    level = read_manifest(out)["results"]["base_validation_perplexity"]
    assert rows[-1]["validation_perplexity"] <= level < rows[-2]["validation_perplexity"]
    assert rows[-1]["step"] < 40
    assert read_manifest(out)["results"]["recovery"]["recovered"]
    with pytest.raises(OptionError, match="--until-recovered: the base is not known"):
        fit(model, tmp_path / "no", text, until_recovered=True)


def test_a_teacher_of_another_vocabulary_or_a_layer_that_nobody_added_is_refused(
    model: Path, text: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", vocab_size=300)
    with pytest.raises(OptionError, match="--teacher"):
        fit(model, tmp_path / "out", text, teacher=other)
    for wrong in ({"train": "repeated"}, {"new_layer_learning_rate": 1e-3}):
        with pytest.raises(OptionError, match="knows no layer that a plan repeats"):
            fit(model, tmp_path / "out", text, **wrong)
    with pytest.raises(OptionError, match="--control"):
        fit(model, tmp_path / "out", text, control=True)
