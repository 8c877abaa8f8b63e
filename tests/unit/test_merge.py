"""Merging against formulas written here from their definitions, in torch and in numpy; and what is refused."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deepen
from deepen.checkpoint import open_checkpoint
from deepen.checkpoint.manifest import read_manifest
from deepen.errors import CheckpointError, OptionError, OutputError, ResourceError, UnsupportedModelError
from deepen.merge import slerp_weights, weighted_sum
from families import TOKENIZER_VOCABULARY, add_tokenizer, make_checkpoint

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Three models of one architecture with other weights, tied embeddings and a tokenizer."""
    place = tmp_path_factory.mktemp("models")
    return [
        add_tokenizer(make_checkpoint("llama", place / name, seed=seed, vocab_size=TOKENIZER_VOCABULARY))
        for seed, name in enumerate("abc")
    ]


def write(folder: Path, state: dict[str, torch.Tensor], **config) -> Path:
    """A checkpoint folder of just these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1} | config))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def retyped(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The same model in another type."""
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(folder)
    return folder


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def edited(source: Path, folder: Path, **config) -> Path:
    """A copy by links with other config fields; None removes one."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    old = json.loads((folder / "config.json").read_text())
    new = {key: value for key, value in (old | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(new))
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_even_average_is_that_of_float32_rounded_once(models, tmp_path, dtype) -> None:
    a, b = (retyped(model, tmp_path / name, dtype) for model, name in zip(models, "ab", strict=False))
    merged = tensors(deepen.merge(tmp_path / "m", [a, b]))
    one, two = tensors(a), tensors(b)
    assert merged.keys() == one.keys()
    for name, tensor in merged.items():
        expected = (one[name].float() * 0.5 + two[name].float() * 0.5).to(dtype)
        assert tensor.dtype == dtype
        assert bits(tensor) == bits(expected), name
    assert any(not torch.equal(tensor, one[name]) for name, tensor in merged.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_number_is_averaged_to_the_bit(tmp_path, dtype) -> None:
    """All 16-bit patterns (or as many of 32), so subnormals, ties, the largest numbers, infinities and both zeros."""
    random = np.random.default_rng(0)
    if dtype == torch.float32:
        one, two = (torch.from_numpy(random.integers(0, 2**32, 300_000, np.uint32)).view(dtype) for _ in "ab")
    else:
        patterns = np.arange(2**16, dtype=np.uint16)
        one = torch.from_numpy(np.tile(patterns, 5)).view(dtype)  # more than one piece
        two = torch.from_numpy(np.concatenate([random.permutation(patterns) for _ in range(5)])).view(dtype)
    keep = ~(one.isnan() | two.isnan())
    one, two = one[keep], two[keep]
    a, b = write(tmp_path / "a", {"x": one}), write(tmp_path / "b", {"x": two})
    merged = tensors(deepen.merge(tmp_path / "m", [a, b], weights=[1, 1]))["x"]
    expected = (one.float() * 0.5 + two.float() * 0.5).to(dtype)
    number = ~expected.isnan()  # infinity minus infinity: no number, whatever its bits
    assert bits(merged[number]) == bits(expected[number])
    assert merged[~number].isnan().all()


def test_three_models_with_weights(models, tmp_path) -> None:
    a, b, c = (retyped(model, tmp_path / name, torch.bfloat16) for model, name in zip(models, "abc", strict=True))
    out = deepen.merge(tmp_path / "m", [a, b, c], weights=[2, 1, 5])
    one, two, three = tensors(a), tensors(b), tensors(c)
    for name, tensor in tensors(out).items():
        exact = (one[name].double() * 2 + two[name].double() + three[name].double() * 5) / 8
        expected = (one[name].float() * 0.25 + two[name].float() * 0.125 + three[name].float() * 0.625).bfloat16()
        assert bits(tensor) == bits(expected), name
        assert torch.allclose(tensor.double(), exact, rtol=2**-8, atol=1e-9)
    content = read_manifest(out)
    assert [source["weight"] for source in content["source"]["models"]] == [0.25, 0.125, 0.625]
    assert content["options"]["weights"] == [2, 1, 5]


def test_a_negative_weight_moves_away(models, tmp_path) -> None:
    a, b, c = models
    one, two, three = map(tensors, models)
    for name, tensor in tensors(deepen.merge(tmp_path / "m", [a, b, c], weights=[1, 1, -1])).items():
        assert torch.equal(tensor, one[name] + two[name] - three[name]), name


def test_many_models_in_many_types(tmp_path) -> None:
    random = torch.Generator().manual_seed(0)
    types = [torch.bfloat16, torch.float32, torch.float64, torch.float16]
    states = [torch.randn(700, 500, generator=random).to(dtype) for dtype in types]
    folders = [write(tmp_path / str(number), {"x": state}) for number, state in enumerate(states)]
    merged = tensors(deepen.merge(tmp_path / "m", folders))["x"]
    assert merged.dtype == torch.bfloat16  # the first one's
    expected = sum(state.double() * 0.25 for state in states)
    assert torch.equal(merged, expected.float().bfloat16())


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("float16", torch.float16)])
def test_the_type_can_be_chosen(models, tmp_path, name, dtype) -> None:
    a, b = (retyped(model, tmp_path / place, torch.bfloat16) for model, place in zip(models, "ab", strict=False))
    out = deepen.merge(tmp_path / "m", [a, b], dtype=name)
    one, two = tensors(a), tensors(b)
    for key, tensor in tensors(out).items():
        assert torch.equal(tensor, (one[key].float() * 0.5 + two[key].float() * 0.5).to(dtype)), key
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == name
    assert {key for key, value in config.items() if json.loads((a / "config.json").read_text())[key] != value} == {"dtype"}


def reference_slerp(t: float, v0: np.ndarray, v1: np.ndarray) -> np.ndarray:
    """The interpolation that merge tools use, by way of an orthogonal basis of the plane of the two directions."""
    u0, u1 = (v.astype(np.float64).ravel() / np.linalg.norm(v.astype(np.float64)) for v in (v0, v1))
    cosine = float(u0 @ u1)
    if abs(cosine) > 0.9995:
        return (1 - t) * v0.astype(np.float64) + t * v1.astype(np.float64)
    angle = math.atan2(float(np.linalg.norm(u1 - cosine * u0)), cosine)
    first = math.cos(t * angle) - math.sin(t * angle) * cosine / math.sin(angle)
    return first * v0.astype(np.float64) + math.sin(t * angle) / math.sin(angle) * v1.astype(np.float64)


@pytest.mark.parametrize("t", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slerp_is_the_reference(models, tmp_path, dtype, t) -> None:
    a, b = (retyped(model, tmp_path / name, dtype) for model, name in zip(models, "ab", strict=False))
    merged = tensors(deepen.merge(tmp_path / "m", [a, b], method="slerp", t=t))
    one, two = tensors(a), tensors(b)
    linear = 0
    for name, tensor in merged.items():
        x, y = one[name].float().numpy(), two[name].float().numpy()
        expected = reference_slerp(t, x, y)
        scale = np.abs(expected).max()
        step = {torch.float32: 2**-23, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
        assert np.abs(tensor.double().numpy() - expected).max() <= step * scale, name
        linear += np.abs(expected - ((1 - t) * x + t * y)).max() <= step * scale
    assert linear < len(merged)  # it is no average


def test_slerp_keeps_the_norm(tmp_path) -> None:
    random = torch.Generator().manual_seed(0)
    one, two = torch.randn(300, 1000, generator=random), torch.randn(300, 1000, generator=random)
    two *= one.norm() / two.norm()
    a, b = write(tmp_path / "a", {"x": one}), write(tmp_path / "b", {"x": two})
    merged = tensors(deepen.merge(tmp_path / "m", [a, b], method="slerp", t=0.5))["x"]
    assert float(merged.norm() / one.norm()) == pytest.approx(1, abs=1e-6)
    assert float(((one + two) / 2).norm() / one.norm()) < 0.75


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1.0, 0.0], [0.0, 1.0], [math.sqrt(3) / 2, 0.5]),  # 90 degrees, a third of the way
        ([3.0, 4.0], [6.0, 8.0], [4.0, 16 / 3]),  # the same direction: on the line
        ([1.0, 0.0], [-1.0, 1e-3], [1 / 3, 1e-3 / 3]),  # nearly opposite: on the line
        ([0.0, 0.0], [3.0, 6.0], [1.0, 2.0]),  # without a direction: on the line
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_slerp_by_hand(tmp_path, one, two, expected) -> None:
    a, b = (write(tmp_path / name, {"x": torch.tensor(value)}) for name, value in (("a", one), ("b", two)))
    merged = tensors(deepen.merge(tmp_path / "m", [a, b], method="slerp", t=1 / 3))["x"]
    assert torch.allclose(merged, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_slerp_are_the_models_to_the_bit(tmp_path, t) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)  # every bit pattern: NaNs with their payloads, infinities, minus zero
    states = [{"x": torch.from_numpy(order).view(torch.bfloat16)} for order in (patterns, patterns[::-1].copy())]
    a, b = (write(tmp_path / name, state) for name, state in zip("ab", states, strict=True))
    for number, options in enumerate(({"method": "slerp", "t": t}, {"weights": [1 - t, t]})):
        merged = tensors(deepen.merge(tmp_path / str(number), [a, b], **options))["x"]
        assert bits(merged) == bits(states[int(t)]["x"])


def test_pure_functions() -> None:
    one, two = np.array([1, np.nan], np.float16), np.array([3, 4], np.float32)
    assert weighted_sum([one, two], [0, 1]).tolist() == [3, 4]
    assert weighted_sum([one, two], [0, 0]).tolist() == [0, 0]
    assert weighted_sum([one, two], [0.5, 0.5]).dtype == np.float32
    assert weighted_sum([one, two.astype(np.float64)], [0.5, 0.5]).dtype == np.float64
    assert np.isinf(weighted_sum([np.full(1, 3e38, np.float32)] * 2, [1, 1])).all()
    assert slerp_weights(0.0, (1.0, 1.0), 0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)), rel=1e-15)
    assert slerp_weights(-0.5, (1.0, 1.0), 0.25) == pytest.approx((2 / math.sqrt(3), 1 / math.sqrt(3)), rel=1e-15)


def test_everything_else_is_the_first_models(models, tmp_path) -> None:
    a = edited(models[0], tmp_path / "a")
    (a / "LICENSE").write_bytes(b"Do what you like.\r\n")
    (a / "README.md").write_text("---\nlicense: mit\n---\n")
    b = edited(models[1], tmp_path / "b", eos_token_id=1, dtype="bfloat16", transformers_version="4.0")
    (b / "chat_template.jinja").write_text("another")
    out = deepen.merge(tmp_path / "m", [a, b])
    for name in ("config.json", "LICENSE", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (a / name).read_bytes(), name
    assert "license: mit" not in (out / "README.md").read_text()  # the other has none
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in tensors(out)


def test_verify_and_manifest(models, tmp_path) -> None:
    out = deepen.merge(tmp_path / "m", models[:2])
    found = deepen.verify(out)
    assert found.ok
    assert found.tensors == len(tensors(models[0]))
    content = read_manifest(out)
    assert content["options"] == {"method": "average", "dtype": "keep", "shard_size": "5GB"}
    sources = content["source"]["models"]
    assert [source["model"] for source in sources] == [str(model) for model in models[:2]]
    assert sources[0]["config_sha256"] == hashlib.sha256((models[0] / "config.json").read_bytes()).hexdigest()
    record = next(record for record in content["tensors"] if record["name"] == "model.norm.weight")
    states = [tensors(folder)["model.norm.weight"] for folder in (out, *models[:2])]
    assert [record["sha256"], *record["sources_sha256"]] == [hashlib.sha256(bits(state)).hexdigest() for state in states]
    with pytest.raises(OptionError, match="no copy of a source"):
        deepen.verify(out, models[0])
    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert len(deepen.verify(out).different) == 1


def test_shards_may_be_cut_otherwise(models, tmp_path) -> None:
    b = tmp_path / "b"
    AutoModelForCausalLM.from_pretrained(models[1]).save_pretrained(b, max_shard_size="20KB")
    add_tokenizer(b)
    assert len(list(b.glob("*.safetensors"))) > 2
    whole = deepen.merge(tmp_path / "whole", models[:2])
    out = deepen.merge(tmp_path / "m", [models[0], b], shard_size="50kB")
    assert len(list(out.glob("*.safetensors"))) > 1
    state = tensors(whole)
    assert {name: bits(tensor) for name, tensor in tensors(out).items()} == {name: bits(state[name]) for name in state}
    assert deepen.verify(out).ok
    AutoModelForCausalLM.from_pretrained(out)


def test_a_plan_that_all_share_is_kept(models, tmp_path) -> None:
    a, b, other = (
        deepen.scale(models[number], tmp_path / name, drop=drop)
        for number, name, drop in ((0, "a", 2), (1, "b", 2), (1, "c", 1))
    )
    out = deepen.merge(tmp_path / "m", [a, b])
    assert read_manifest(out)["plan"] == read_manifest(a)["plan"]
    assert read_manifest(out)["source"]["models"][1]["manifest_sha256"] == read_manifest(b)["manifest_sha256"]
    assert "Layer plan" not in (out / "README.md").read_text()
    assert read_manifest(deepen.merge(tmp_path / "n", [a, edited(b, tmp_path / "d")]))["plan"]
    with pytest.raises(UnsupportedModelError, match="num_hidden_layers is 10 here and 8 there"):
        deepen.merge(tmp_path / "o", [a, other])


def test_what_holds_no_floats_must_be_equal(tmp_path) -> None:
    weight, mask = torch.ones(4), torch.tensor([[True, False], [False, True]])
    a = write(tmp_path / "a", {"x": weight, "mask": mask, "at": torch.arange(5)})
    b = write(tmp_path / "b", {"x": weight * 3, "mask": mask, "at": torch.arange(5)})
    c = write(tmp_path / "c", {"x": weight * 3, "mask": ~mask, "at": torch.arange(5)})
    merged = tensors(deepen.merge(tmp_path / "m", [a, b], dtype="float16"))
    assert torch.equal(merged["mask"], mask)
    assert torch.equal(merged["at"], torch.arange(5))
    assert merged["x"].tolist() == [2.0] * 4
    with pytest.raises(UnsupportedModelError, match=r"mask holds no floats \(BOOL\) and is another"):
        deepen.merge(tmp_path / "n", [a, c])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 8}, "num_attention_heads is 8 here and 4 there"),
        ({"model_type": "mistral"}, "model_type is 'mistral' here and 'llama' there"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 5.0"),
        ({"rope_parameters": None, "rope_theta": 5}, "rope_theta is 5 here"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type is 'linear' here and 'default'",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ],
)
def test_configs_that_disagree_are_refused(models, tmp_path, change, message) -> None:
    b = edited(models[1], tmp_path / "b", **change)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        deepen.merge(tmp_path / "m", [models[0], b])
    assert caught.value.where == str(b)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None},  # as versions before 5 wrote it
        {"use_cache": False, "pad_token_id": 7, "attention_dropout": 0.1, "torch_dtype": "float16", "dtype": None},
        {"rms_norm_eps": None, "_name_or_path": "x", "max_position_embeddings": 4096},
    ],
)
def test_configs_that_mean_the_same_are_not(models, tmp_path, change) -> None:
    deepen.merge(tmp_path / "m", [models[0], edited(models[1], tmp_path / "b", **change)])


def test_other_tensors_are_refused_by_name(tmp_path) -> None:
    x, y = torch.ones(4, 2), torch.ones(3)
    a = write(tmp_path / "a", {"x": x, "y": y})
    others = {
        "2 are too many, first 'v'": {"x": x, "y": y, "z": y + 1, "v": y + 2},
        "1 tensors are missing, first 'y' and 1 are too many, first 'z'": {"x": x, "z": y},
        r"x has the shape \[2, 4\], and \[4, 2\] in .*/a": {"x": x.T.contiguous(), "y": y},
        r"y is quantised \(F8_E4M3, and F32": {"x": x, "y": y.to(torch.float8_e4m3fn)},
        r"y holds no floats \(I64\)": {"x": x, "y": y.long()},
    }
    for number, (message, state) in enumerate(others.items()):
        b = write(tmp_path / f"b{number}", state)
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            deepen.merge(tmp_path / "m", [a, b])
        assert caught.value.where == str(b)


def change_tokenizer(folder: Path, edit) -> Path:
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def swap_two(content: dict) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def rename_added(content: dict) -> None:
    content["added_tokens"][2]["content"] = "<|im_end|>"


def add_one(content: dict) -> None:
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 900, "content": "<new>"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap_two, "token [0-9]+ is '[ab]' here, and token [0-9]+ is '[ab]' there"),
        (rename_added, r"token 2 is '<\|im_end\|>' here"),
        (add_one, "token 900 is '<new>' here, and token None is 'no token' there"),
    ],
)
def test_another_vocabulary_is_refused(models, tmp_path, edit, message) -> None:
    b = change_tokenizer(edited(models[1], tmp_path / "b"), edit)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        deepen.merge(tmp_path / "m", [models[0], b])
    assert caught.value.where == str(b / "tokenizer.json")


def test_the_same_vocabulary_in_other_words_is_none(models, tmp_path) -> None:
    b = change_tokenizer(edited(models[1], tmp_path / "b"), lambda content: content.update(truncation={"max_length": 5}))
    assert deepen.merge(tmp_path / "m", [models[0], b])


def test_other_tokenizer_files(tmp_path) -> None:
    def model(name: str, **files: bytes) -> Path:
        folder = write(tmp_path / name, {"x": torch.ones(1)})
        for file, data in files.items():
            (folder / file.replace("_", ".")).write_bytes(data)
        return folder

    pieces, scores = model("a", tokenizer_model=b"one"), model("b", tokenizer_model=b"two")
    unigram = b'{"model": {"vocab": [["a", -1.0], ["b", -2.5]]}, "added_tokens": []}'
    listed, same = model("c", tokenizer_json=unigram), model("d", tokenizer_json=unigram.replace(b"-2.5", b"-2.25"))
    bare, bare_too = model("e"), model("f")
    words, numbered = model("g", vocab_json=b'{"a": 0, "b": 1}'), model("h", vocab_json=b'{"b": 0, "a": 1}')
    broken = model("i", tokenizer_json=b'{"model": 5}')
    with pytest.raises(UnsupportedModelError, match=r"the vocabulary is not that of .*/a/tokenizer\.model"):
        deepen.merge(tmp_path / "m", [pieces, scores])
    with pytest.raises(UnsupportedModelError, match="token 0 is 'b' here, and token 0 is 'a' there"):
        deepen.merge(tmp_path / "m", [words, numbered])
    with pytest.raises(UnsupportedModelError, match=r"none here, tokenizer.model there"):
        deepen.merge(tmp_path / "m", [pieces, bare])
    with pytest.raises(CheckpointError, match="the vocabulary cannot be read"):
        deepen.merge(tmp_path / "m", [listed, broken])
    deepen.merge(tmp_path / "m", [listed, same])
    deepen.merge(tmp_path / "n", [bare, bare_too])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ties"}, "--method 'ties' is unknown"),
        ({"weights": [1]}, "--weights gives 1 numbers for 2 models"),
        ({"weights": [1, math.nan]}, "positive, finite sum"),
        ({"weights": [1, math.inf]}, "positive, finite sum"),
        ({"weights": [1, -1]}, "--weights 1,-1 do not have a positive"),
        ({"weights": [0, 0]}, "positive, finite sum"),
        ({"t": 0.3}, "--t is an option of --method slerp"),
        ({"method": "slerp", "t": 1.5}, "--t 1.5 is not between 0 and 1"),
        ({"method": "slerp", "t": math.nan}, "--t nan is not between 0 and 1"),
        ({"method": "slerp", "weights": [1, 1]}, "--weights is an option of --method average"),
        ({"dtype": "int4"}, "--dtype 'int4' is unknown"),
        ({"shard_size": 0}, "--shard-size 0 is not"),
    ],
)
def test_wrong_options(models, tmp_path, options, message) -> None:
    with pytest.raises(OptionError, match=message):
        deepen.merge(tmp_path / "m", models[:2], **options)


def test_too_few_or_too_many_models(models, tmp_path) -> None:
    for few in ([], models[:1]):
        with pytest.raises(OptionError, match=f"at least two models, not {len(few)}"):
            deepen.merge(tmp_path / "m", few)
    with pytest.raises(OptionError, match="slerp interpolates between two models, and here are 3"):
        deepen.merge(tmp_path / "m", models, method="slerp")


def test_results_that_cannot_be_stored_are_refused(tmp_path) -> None:
    large, small = torch.full((2,), 3e38), torch.full((2,), 1e5)
    a, b = write(tmp_path / "a", {"x": large}), write(tmp_path / "b", {"x": -large})
    c, broken = write(tmp_path / "c", {"x": small}), write(tmp_path / "d", {"x": torch.tensor([1.0, math.nan])})
    with pytest.raises(CheckpointError, match="x becomes infinite"):
        deepen.merge(tmp_path / "m", [a, b], weights=[2, -1])
    with pytest.raises(CheckpointError, match="x holds values too large for F16"):
        deepen.merge(tmp_path / "m", [c, c], dtype="float16")
    with pytest.raises(CheckpointError, match="x holds values that are not finite"):
        deepen.merge(tmp_path / "m", [c, broken], method="slerp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_ggufs_and_targets_are_refused(models, tmp_path, monkeypatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(UnsupportedModelError, match="a GGUF file cannot be merged"):
        deepen.merge(tmp_path / "m", [models[0], tmp_path / "model.gguf"])
    with pytest.raises(OutputError, match="exists already"):
        deepen.merge(models[2], models[:2])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=40_960))
    with pytest.raises(ResourceError, match="are free"):
        deepen.merge(tmp_path / "m", models[:2])
    monkeypatch.undo()
    out = deepen.merge(tmp_path / "m", models[:2])
    first = tensors(out)["model.norm.weight"]
    deepen.merge(out, models[1:], overwrite=True)
    assert not torch.equal(tensors(out)["model.norm.weight"], first)


@pytest.mark.parametrize("method", ["average", "slerp"])
def test_memory_is_bounded_by_a_piece_and_not_by_a_tensor(tmp_path, method) -> None:
    random = torch.Generator().manual_seed(0)
    for name in "ab":
        write(tmp_path / name, {"x": torch.randn(1 << 24, generator=random), "y": torch.randn(1 << 24, generator=random)})
    code = (
        "import sys, deepen\n"
        "deepen.merge(sys.argv[1], sys.argv[2:4], method=sys.argv[4])\n"
        "lines = open('/proc/self/status').read().split('\\n')\n"
        "print(next(line for line in lines if line.startswith('VmHWM')).split()[1])\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m", tmp_path / "a", tmp_path / "b", method],
        capture_output=True, text=True, check=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    peak, heavy = done.stdout.splitlines()
    assert int(peak) * 1024 < 100 * 10**6  # two models of 134 MB, each of two tensors
    assert heavy == "[]"
    assert "merge: 134 MB in" in done.stderr


def test_the_command_line(models, tmp_path) -> None:
    def program(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "deepen", "merge", *map(str, words)], capture_output=True, text=True)

    done = program(tmp_path / "m", *models, "--weights", "0.5,0.25,0.25", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"out": str(tmp_path / "m")})
    assert tensors(tmp_path / "m").keys() == open_checkpoint(models[0]).tensors.keys()
    assert program(tmp_path / "n", *models[:2], "--method", "slerp", "--t", "0.25").stdout == f"{tmp_path / 'n'}\n"
    one, two = tensors(models[0]), tensors(models[1])
    expected = reference_slerp(0.25, *(state["model.embed_tokens.weight"].numpy() for state in (one, two)))
    assert np.allclose(load_file(tmp_path / "n" / "model.safetensors")["model.embed_tokens.weight"], expected, atol=1e-6)
    for words, message in [
        ((models[0],), "at least two models, not 1"),
        ((*models[:2], "--weights", "a,b"), "'a,b' is not a list of numbers such as 0.5,0.5"),
        ((*models[:2], "--weights", "-1,1"), "--weights -1.0,1.0 do not have a positive, finite sum"),
        ((models[0], tmp_path / "nowhere"), "nowhere: no such file or folder"),
    ]:
        done = program(tmp_path / "o", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
