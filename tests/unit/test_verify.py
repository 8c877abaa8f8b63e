"""What verify proves of each kind of output."""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

import deepen
from deepen.errors import CheckpointError, Refuted
from families import TOKENIZER_VOCABULARY, add_tokenizer, make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_checkpoint("llama", tmp_path_factory.mktemp("verify") / "llama", vocab_size=TOKENIZER_VOCABULARY)
    return add_tokenizer(made)


@pytest.fixture
def small_gguf(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_block_count(4)
    random = np.random.default_rng(0)
    for name in ("token_embd.weight", *(f"blk.{i}.{part}.weight" for i in range(4) for part in ("attn_output", "ffn_down"))):
        writer.add_tensor(name, random.standard_normal((3, 5), np.float32))  # 60 bytes, so that padding follows
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "base.gguf"


def test_every_bit_of_a_gguf_counts(small_gguf, tmp_path):
    out = deepen.scale(small_gguf, tmp_path / "deep.gguf", drop=1)
    found = deepen.verify(out, small_gguf)
    assert found.ok
    assert found.tensors == 13
    whole = out.read_bytes()
    for position in range(0, len(whole), 7):
        out.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            assert not deepen.verify(out).ok, position
        except CheckpointError:
            continue
    out.write_bytes(whole)
    manifest = tmp_path / "deep.gguf.deepen.json"
    manifest.write_text(manifest.read_text().replace('"verb": "scale"', '"verb": "other"'))
    with pytest.raises(Refuted, match="changed"):
        deepen.verify(out)


def test_missing_and_unexpected_tensors(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    out = deepen.scale(folder, tmp_path / "deep", drop=2)
    state = load_file(out / "model.safetensors")
    state["stranger"] = state.pop("model.norm.weight")
    save_file(state, out / "model.safetensors", {"format": "pt"})
    found = deepen.verify(out)
    assert found.missing == ("model.norm.weight",)
    assert found.unexpected == ("stranger",)
    assert not found.ok
    assert found.to_dict()["missing"] == found.to_dict()["unexpected"] == 1


def test_a_trained_model_is_verified_too(folder, tmp_path):
    (tmp_path / "text.txt").write_text("the deeper model of the layers repeats the layers of the base model and heals " * 80)
    out = deepen.pretrain(
        folder, tmp_path / "healed", data=tmp_path / "text.txt", tokens=256, sequence_length=64, batch_tokens=128, every=1
    )
    assert deepen.verify(out).ok
    assert deepen.verify(out).tensors == len(deepen.checkpoint.open_checkpoint(out).tensors)
    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert len(deepen.verify(out).different) == 1


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
def test_an_exported_file_is_verified_too(folder, tmp_path):
    out = deepen.export(folder, tmp_path / "model.gguf", quantize="F16")
    assert deepen.verify(out).ok
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    assert deepen.verify(out).different == ("model.gguf",)


def test_what_deepen_did_not_make_cannot_be_verified(folder):
    with pytest.raises(CheckpointError, match="no manifest"):
        deepen.verify(Path(folder))


def test_the_chain_leads_back_to_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_checkpoint("llama", tmp_path / "base", num_hidden_layers=2)
    for name, seed in (("other", 1), ("strange", 2)):
        make_checkpoint("llama", tmp_path / name, num_hidden_layers=2, seed=seed)
    deepen.scale("base", "deep", drop=1)  # 0, 1
    deepen.scale("deep", "deeper", drop=0)
    deepen.scale("other", "beside", drop=0)
    deepen.merge("merged", ["deeper", "beside"])

    found = deepen.verify("merged")
    assert found.ok
    assert [(link.model, link.verb, link.status) for link in found.chain] == [
        ("deeper", "scale", "equal"), ("beside", "scale", "equal"), ("deep", "scale", "equal"), ("other", None, "equal"),
        ("base", None, "equal"),
    ]  # fmt: skip
    assert found.to_dict()["chain"][0] == {"model": "deeper", "verb": "scale", "status": "equal", "different": []}

    (tmp_path / "moved").mkdir()
    for name in ("merged", "deeper", "beside", "deep"):
        (tmp_path / name).rename(
            tmp_path / "moved" / name
        )  # what lies beside an output is found; the bases stay where they were
    found = deepen.verify("moved/merged")
    assert [link.status for link in found.chain] == ["equal"] * 5

    weights = tmp_path / "base/model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    found = deepen.verify("moved/merged")
    assert not found.ok
    (broken,) = [link for link in found.chain if link.status == "different"]
    assert (broken.model, len(broken.different)) == ("base", 1)

    weights.unlink()
    for file in (tmp_path / "strange").iterdir():
        file.rename(tmp_path / "base" / file.name)
    assert [link.model for link in deepen.verify("moved/merged").chain if link.status == "different"] == ["base"]
    for file in (tmp_path / "base").iterdir():
        file.unlink()
    (tmp_path / "base").rmdir()
    found = deepen.verify("moved/merged")
    assert found.ok  # nothing that is there is wrong
    assert found.chain[-1].status == "absent"


def test_a_link_in_the_middle_that_was_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_checkpoint("llama", tmp_path / "base", num_hidden_layers=2)
    deepen.scale("base", "deep", drop=0)
    deepen.scale("deep", "deeper", drop=1)
    weights = tmp_path / "deep/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = deepen.verify("deeper")
    assert (found.equal, found.different) == (found.tensors, ())
    assert [link.status for link in found.chain] == ["different", "equal"]
