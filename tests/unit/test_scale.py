"""What `scale` writes beside the weights, and its conversions."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

import deepen
from deepen.checkpoint.manifest import read_manifest
from deepen.errors import CheckpointError, UnsupportedModelError
from families import TOKENIZER_VOCABULARY, add_tokenizer, make_checkpoint
from replay import PROMPT, loaded, logits, tensors

SIDE_FILES = {
    "LICENSE": b"Do what you like.\r\n",
    "tokenizer.model": bytes(range(256)),
    "modeling_custom.py": b"raise SystemExit('code of a checkpoint must not run')\n",
    "added_tokens.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "qwen.tiktoken": b"IQ== 0\n",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("base") / "llama", vocab_size=TOKENIZER_VOCABULARY)
    add_tokenizer(folder)
    for name, data in SIDE_FILES.items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_custom.Custom"}
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_everything_else_travels_byte_for_byte(base, tmp_path):
    out = deepen.scale(base, tmp_path / "deep", drop=2)
    for name in [*SIDE_FILES, "tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert new["num_hidden_layers"] == 8
    assert new["auto_map"] == old["auto_map"]
    assert {key for key in old if old[key] != new[key]} == {"num_hidden_layers"}
    assert (
        AutoTokenizer.from_pretrained(out)("the layers").input_ids
        == AutoTokenizer.from_pretrained(base)("the layers").input_ids
    )


def test_tied_embeddings_stay_tied(base, tmp_path, caplog):
    out = deepen.scale(base, tmp_path / "deep", drop=2)
    assert "lm_head.weight" not in tensors(out)
    config = json.loads((out / "config.json").read_text())
    del config["auto_map"]
    (out / "config.json").write_text(json.dumps(config))
    model = loaded(out, caplog)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_manifest_and_card_say_what_happened(base, tmp_path):
    out = deepen.scale(base, tmp_path / "deep", repeat="1:4", identity_init=True)
    content = read_manifest(out)
    assert content["verb"] == "scale"
    assert content["options"] == {"repeat": "1:4", "identity_init": True, "dtype": "keep", "shard_size": "5GB"}
    assert content["plan"] == {"source_layers": 6, "layers": "0:4,1:6", "identity": [4, 5, 6]}
    assert content["seconds"] > 0
    records = {record["name"]: record for record in content["tensors"]}
    assert records.keys() == tensors(out).keys()
    zeroed = records["model.layers.5.mlp.down_proj.weight"]
    assert (zeroed["source"], zeroed["fill"]) == ("model.layers.2.mlp.down_proj.weight", 0.0)
    assert zeroed["sha256"] != zeroed["source_sha256"]
    copied = records["model.layers.5.mlp.up_proj.weight"]
    assert copied["sha256"] == copied["source_sha256"]
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card
    assert "layer_range: [1, 6]" in card
    # a second stage names the first by the hash of its manifest
    again = deepen.scale(out, tmp_path / "deeper", drop=3)
    assert read_manifest(again)["source"]["manifest_sha256"] == content["manifest_sha256"]


def test_the_same_command_writes_the_same_weights(base, tmp_path):
    one, two = (deepen.scale(base, tmp_path / name, drop=2, shard_size="40kB") for name in ("one", "two"))
    for file in sorted(one.iterdir()):
        if file.name not in {"deepen.json"}:
            assert file.read_bytes() == (two / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_dtype_converts_while_streaming(base, tmp_path, caplog, name, dtype):
    out = deepen.scale(base, tmp_path / "deep", layers="0:6", dtype=name)
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == name
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor.to(dtype))
    assert deepen.verify(out, base).ok


def test_mistral_as_llama(tmp_path, caplog):
    """Same weights, same mathematics, but no window; a prompt inside the window gives the same logits."""
    folder = make_checkpoint("mistral", tmp_path / "mistral")
    written = loaded(deepen.scale(folder, tmp_path / "llama", drop=2, as_="llama"), caplog)
    assert type(written).__name__ == "LlamaForCausalLM"
    assert written.config.max_position_embeddings == 4096
    assert getattr(written.config, "sliding_window", None) is None
    mistral = loaded(deepen.scale(folder, tmp_path / "deep", drop=2), caplog)
    with torch.no_grad():
        short = PROMPT[:, :7]
        assert torch.equal(written(short).logits, mistral(short).logits)
    assert not torch.allclose(logits(written), logits(mistral))  # beyond the window they differ
    longer = deepen.scale(folder, tmp_path / "longer", drop=2, as_="llama", max_position_embeddings=99)
    assert json.loads((longer / "config.json").read_text())["max_position_embeddings"] == 99
    with pytest.raises(UnsupportedModelError):
        deepen.scale(make_checkpoint("qwen3", tmp_path / "qwen3"), tmp_path / "no", drop=2, as_="llama")


def test_quantised_models_are_copied_but_not_converted(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint("llama", tmp_path / "base")
    state = {
        name: tensor.to(torch.float8_e4m3fn) if name.endswith("proj.weight") else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp", "model.layers.5.self_attn"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    out = deepen.scale(folder, tmp_path / "deep", drop=2)
    assert deepen.verify(out, folder).ok
    # layers 0 1 2 3 2 3 4 5: what was 1 stays 1, what was 5 is 7
    kept = json.loads((out / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert kept == ["lm_head", "model.layers.1.mlp", "model.layers.7.self_attn"]
    for options in ({"dtype": "bfloat16"}, {"identity_init": True}):
        with pytest.raises((UnsupportedModelError, CheckpointError)):
            deepen.scale(folder, tmp_path / "no", drop=2, **options)
    assert not (tmp_path / "no").exists()


def test_no_torch_is_needed(base, tmp_path):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'gguf'}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import deepen\n"
        "deepen.scale(sys.argv[1], sys.argv[2], drop=2)\n"
        "assert deepen.verify(sys.argv[2], sys.argv[1]).ok\n"
        "assert deepen.plan(sys.argv[1], drop=2).num_hidden_layers == 8\n"
    )
    subprocess.run([sys.executable, "-c", code, str(base), str(tmp_path / "deep")], check=True, stderr=subprocess.DEVNULL)


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Peak resident memory stays below 100 MB."""
    import struct

    folder = make_checkpoint("llama", tmp_path / "base", num_hidden_layers=2)
    header, data = {}, 0
    from deepen.checkpoint.reader import read_header

    shapes = {name: tensor.shape for name, tensor in read_header(folder / "model.safetensors")[0].items()}
    for name, shape in shapes.items():
        big = [shape[0], shape[1] * 600] if len(shape) == 2 and "layers" in name else list(shape)
        size = 4 * big[0] * (big[1] if len(big) == 2 else 1)
        header[name] = {"dtype": "F32", "shape": big, "data_offsets": [data, data + size]}
        data += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        block = os.urandom(1 << 20)
        for start in range(0, data, 1 << 20):
            stream.write(block[: data - start])
    code = (
        "import sys, deepen\n"
        "deepen.scale(sys.argv[1], sys.argv[2], repeat='0:2x4')\n"
        # ru_maxrss would still count the test process that this one was forked from
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "deep")]
    peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    written = (tmp_path / "deep" / "model.safetensors").stat().st_size
    assert written > 60_000_000
    assert int(peak) < 100_000
