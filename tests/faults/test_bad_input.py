"""Each bad input ends with exit code 2, one message that says what, where and what next, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
from deepen.checkpoint.reader import read_header
from deepen.errors import DeepenError
from families import make_checkpoint


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_checkpoint("llama", tmp_path_factory.mktemp("good") / "llama", tie_word_embeddings=False)


@pytest.fixture
def broken(good, tmp_path):
    return shutil.copytree(good, tmp_path / "broken")


def edit_config(folder: Path, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "REMOVE"}))


def edit_tensors(folder: Path, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path):
    """Split into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shard_then(change):
    def apply(folder):
        shard(folder)
        change(folder)

    return apply


def rename(old, new):
    def apply(tensors):
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return lambda folder: edit_tensors(folder, apply)


BROKEN = {
    "no config": lambda f: (f / "config.json").unlink(),
    "empty config": lambda f: (f / "config.json").write_text(""),
    "cut config": lambda f: (f / "config.json").write_bytes((f / "config.json").read_bytes()[:-20]),
    "config is a list": lambda f: (f / "config.json").write_text("[1]"),
    "config nested deeply": lambda f: (f / "config.json").write_text('{"a":' * 100_000),
    "weights missing": lambda f: (f / "model.safetensors").unlink(),
    "weights cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
    "weights longer": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"0"),
    "weights empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "weights are a folder": lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
    "only pickles": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "a shard missing": shard_then(lambda f: (f / "model-00002-of-00002.safetensors").unlink()),
    "a shard cut": shard_then(lambda f: os.truncate(f / "model-00001-of-00002.safetensors", 1000)),
    "index not JSON": shard_then(lambda f: (f / "model.safetensors.index.json").write_text("{")),
    "adapter": lambda f: ((f / "config.json").unlink(), (f / "adapter_config.json").write_text("{}")),
    "diffusion": lambda f: ((f / "config.json").unlink(), (f / "model_index.json").write_text("{}")),
    "encoder": lambda f: edit_config(f, model_type="bert", architectures=["BertModel"]),
    "encoder-decoder": lambda f: edit_config(f, model_type="t5", is_encoder_decoder=True),
    "multimodal": lambda f: edit_config(f, vision_config={"num_hidden_layers": 2}),
    "too many layers in the config": lambda f: edit_config(f, num_hidden_layers=8),
    "too few layers in the config": lambda f: edit_config(f, num_hidden_layers=4),
    "no depth": lambda f: edit_config(f, num_hidden_layers="REMOVE"),
    "depth is text": lambda f: edit_config(f, num_hidden_layers="6"),
    "depth is true": lambda f: edit_config(f, num_hidden_layers=True),
    "depth is a float": lambda f: edit_config(f, num_hidden_layers=6.0),
    "depth is null": lambda f: edit_config(f, num_hidden_layers=None),
    "depth is negative": lambda f: edit_config(f, num_hidden_layers=-6),
    "depth is huge": lambda f: edit_config(f, num_hidden_layers=10**30),
    "no model type": lambda f: edit_config(f, model_type="REMOVE"),
    "model type is a number": lambda f: edit_config(f, model_type=3),
    "a layer missing": lambda f: edit_tensors(f, lambda t: [t.pop(n) for n in list(t) if ".layers.3." in n]),
    "a tensor missing": lambda f: edit_tensors(f, lambda t: t.pop("model.layers.3.mlp.up_proj.weight")),
    "a tensor too many": lambda f: edit_tensors(f, lambda t: t.update({"model.layers.3.mlp.x.weight": torch.ones(2)})),
    "no layers": rename("model.layers.", "model.stack_"),
    "two stacks": lambda f: edit_tensors(f, lambda t: t.update({"vision.layers.0.x": torch.ones(2)})),
    "unknown list of layers": lambda f: edit_config(f, layer_magic=[1, 2, 3, 4, 5, 6]),
    "unknown number about layers": lambda f: edit_config(f, special_layer_index=3),
    "layer types of another length": lambda f: edit_config(f, layer_types=["full_attention"] * 5),
    "side file leads out": lambda f: (f / "notes.txt").symlink_to("/etc/hostname"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoints(broken, tmp_path, what):
    BROKEN[what](broken)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DeepenError) as caught:
        deepen.scale(broken, tmp_path / "out", drop=2)
    assert caught.value.exit_code == 2
    assert caught.value.what
    assert str(broken) in str(caught.value) or caught.value.where is not None, "the message does not say where"
    assert caught.value.next is not None, "the message does not say what next"
    assert "\n" not in caught.value.what
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_attention_heads", "vocab_size", "intermediate_size", "num_key_value_heads"]
)
@pytest.mark.parametrize("value", ["x", [1], -1, 10**40, {}, 1.5])
def test_sizes_of_wrong_types_are_refused_before_any_work(broken, tmp_path, field, value):
    edit_config(broken, **{field: value})
    for verb in (lambda: deepen.plan(broken, drop=2), lambda: deepen.scale(broken, tmp_path / "out", drop=2)):
        with pytest.raises(DeepenError, match=field) as caught:
            verb()
        assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"drop": 99}, {"drop": 2, "layers": "0:6"}, {"layers": "0:0"}, {"layers": "4:2"}, {"layers": "0:7"},
        {"repeat": "x"}, {"drop": 2, "dtype": "int8"}, {"drop": 2, "as_": "gpt2"}, {"drop": 2, "to": "onnx"},
        {"drop": 2, "to": "hf"},
        {"drop": 2, "shard_size": "0"}, {"drop": 2, "shard_size": "big"}, {"drop": 2, "max_position_embeddings": 4096},
    ],
)  # fmt: skip
def test_bad_options(good, tmp_path, options):
    with pytest.raises(DeepenError) as caught:
        deepen.scale(good, tmp_path / "out", **options)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == []


def test_an_existing_output_is_kept(good, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(DeepenError, match="exists") as caught:
        deepen.scale(good, out, drop=2)
    assert caught.value.exit_code == 2
    assert os.listdir(out) == ["precious"]
    deepen.scale(good, out, drop=2, overwrite=True)
    assert not (out / "precious").exists()
    assert deepen.verify(out, good).ok


def test_the_source_is_not_overwritten_by_itself(broken):
    with pytest.raises(DeepenError):
        deepen.scale(broken, broken, drop=2)
    assert deepen.plan(broken, drop=2).num_hidden_layers == 8


def test_too_little_disk(good, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DeepenError, match="free") as caught:
        deepen.scale(good, tmp_path / "out", drop=2)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(good, tmp_path):
    code = (
        "import resource, sys, deepen\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: deepen.scale(sys.argv[1], sys.argv[2], drop=2)\n"
        "except deepen.errors.DeepenError as error: print(error); sys.exit(error.exit_code)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(good), str(tmp_path / "out")], capture_output=True, text=True)
    assert (run.returncode, "disk is full" in run.stdout) == (3, True), run.stderr
    assert os.listdir(tmp_path) == []


def test_a_flipped_bit_anywhere_is_found_and_named(good, tmp_path):
    out = deepen.scale(good, tmp_path / "out", drop=2)
    tensors, _ = read_header(out / "model.safetensors")
    names = {0: "model.safetensors", 100: "model.safetensors"}
    names |= {tensor.offset + tensor.nbytes // 2: tensor.name for tensor in tensors.values()}
    whole = (out / "model.safetensors").read_bytes()
    for position, name in names.items():
        flipped = bytearray(whole)
        flipped[position] ^= 4
        (out / "model.safetensors").write_bytes(flipped)
        found = deepen.verify(out)
        assert not found.ok
        assert any(name in text for text in found.different), (position, name, found)
    (out / "model.safetensors").write_bytes(whole)
    assert deepen.verify(out, good).ok
    for file in ("config.json", "README.md", "generation_config.json"):
        text = (out / file).read_bytes()
        (out / file).write_bytes(text[:-3] + bytes([text[-3] ^ 1]) + text[-2:])
        assert deepen.verify(out).different == (file,)
        (out / file).write_bytes(text)


def test_a_changed_source_is_found(good, broken, tmp_path):
    out = deepen.scale(good, tmp_path / "out", drop=2)
    edit_tensors(broken, lambda t: t["model.layers.2.mlp.up_proj.weight"].add_(1))
    found = deepen.verify(out, broken)
    assert set(found.different) == {"model.layers.2.mlp.up_proj.weight", "model.layers.4.mlp.up_proj.weight"}
    assert found.equal == found.tensors - 2


SLOW = """
import signal, sys, deepen
from deepen.checkpoint import copy
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
real = copy._write
def slow(files, file, data, offset):
    print("moving", flush=True)
    import time; time.sleep(0.05)
    return real(files, file, data, offset)
copy._write = slow
deepen.scale(sys.argv[1], sys.argv[2], drop=2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_at_any_moment(good, tmp_path, number):
    out = tmp_path / "out"
    for moment in (0.0, 0.3, 0.9):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(good), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(number)
        process.communicate()
        assert process.returncode != 0
        assert not out.exists()
    deepen.scale(good, out, drop=2)
    assert deepen.verify(out, good).ok
    assert [name for name in os.listdir(tmp_path) if "out" in name] == ["out"]
