"""Defects seen in other tools that stack layers, each as a test that this one must pass."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import deepen
from deepen.errors import PlanError, UnsupportedModelError
from deepen.plan import parse_plan
from families import make_checkpoint
from replay import loaded, logits, replayed_logits, tensors


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3"])
def test_config_lists_grow_with_the_model(family, tmp_path):
    """Weights written, then death in the config; or a config of the old depth that loads as a shallower model."""
    folder = make_checkpoint(family, tmp_path / "base")
    plan = [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]
    out = deepen.scale(folder, tmp_path / "deep", layers="0:5,1:6")
    old, new = AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(out)
    assert new.num_hidden_layers == 10
    assert new.layer_types == [old.layer_types[layer] for layer in plan]
    if family == "smollm3":
        assert new.no_rope_layers == [old.no_rope_layers[layer] for layer in plan]
    assert len(AutoModelForCausalLM.from_pretrained(out).model.layers) == 10


def test_reversed_and_negative_ranges_are_refused(tmp_path):
    folder = make_checkpoint("llama", tmp_path / "base")
    for ranges in ([[0, 5], [5, 2], [2, 6]], [[0, 5], [-2, 6]], [[0, 5], [1, 7]], [[0, 0], [3, 3]]):
        slices = [{"sources": [{"model": "base", "layer_range": bounds}]} for bounds in ranges]
        file = tmp_path / "plan.yaml"
        file.write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
        with pytest.raises(PlanError):
            deepen.scale(folder, tmp_path / "deep", plan=file)
        assert not (tmp_path / "deep").exists()


def test_each_pass_has_its_own_cache_slot(tmp_path):
    """A copied layer that keeps its old index shares a cache slot with its original, and cached text differs."""
    folder = make_checkpoint("qwen3", tmp_path / "base")
    virtual, _ = deepen.load(folder, {"repeat": "1:4"})
    indices = [layer.self_attn.layer_idx for layer in virtual.model.layers]
    assert indices == list(range(9))
    prompt = torch.arange(3, 43)[None]
    with torch.no_grad():
        cache = virtual(prompt[:, :-1], use_cache=True).past_key_values
        cached = virtual(prompt[:, -1:], past_key_values=cache).logits[0, -1]
        plain = virtual(prompt, use_cache=False).logits[0, -1]
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-5)


def test_expert_numbers_are_not_layer_numbers(tmp_path):
    """Renaming every `.1.` in `model.layers.1.mlp.experts.1.…` loses tensors and makes spurious ones."""
    config = {"num_hidden_layers": 4, "num_local_experts": 4}
    folder = make_checkpoint("mixtral", tmp_path / "base", **config)
    if not any(".experts.1." in name for name in tensors(folder)):
        split_experts(folder)
    names = set(tensors(folder))
    per_layer = {name.removeprefix("model.layers.0.") for name in names if name.startswith("model.layers.0.")}
    assert any("experts.3.w2" in name for name in per_layer)
    results = set(tensors(deepen.scale(folder, tmp_path / "deep", expand=2)))
    outside = {name for name in names if ".layers." not in name}
    assert results == outside | {f"model.layers.{i}.{name}" for i in range(6) for name in per_layer}


def split_experts(folder):
    """Rewrite fused experts as Mixtral's released checkpoints name them."""
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if ".experts." in name]:
        tensor, prefix = state.pop(name), name.split(".mlp.")[0]
        for expert, weight in enumerate(tensor):
            base = f"{prefix}.block_sparse_moe.experts.{expert}"
            if name.endswith("gate_up_proj"):
                gate, up = weight.chunk(2)
                state |= {f"{base}.w1.weight": gate.contiguous(), f"{base}.w3.weight": up.contiguous()}
            else:
                state[f"{base}.w2.weight"] = weight.contiguous()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})


TINY = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
HF = TINY | {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
# Families that no table of ours lists, with other names for the projections that write: c_proj, dense, fc2, out_proj, wo …
OTHERS = {
    "gpt2": TINY | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 64},
    "gptj": TINY | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 64, "rotary_dim": 4},
    "gpt_bigcode": TINY | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 64},
    "opt": TINY
    | {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "num_hidden_layers": 4, "word_embed_proj_dim": 32},
    "phi": HF | {"num_hidden_layers": 4},
    "stablelm": HF | {"num_hidden_layers": 4, "num_key_value_heads": 2},
    "starcoder2": HF | {"num_hidden_layers": 4, "num_key_value_heads": 2},
    "falcon": TINY | {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4},
    "olmo": HF | {"num_hidden_layers": 4},
    "olmoe": HF | {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2},
    "nemotron": HF | {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8},
    "glm4": HF | {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8},
    "qwen2_moe": HF
    | {"num_hidden_layers": 4, "num_key_value_heads": 4, "num_experts": 4, "moe_intermediate_size": 16}
    | {"shared_expert_intermediate_size": 16},
    "granitemoe": HF | {"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    from families import randomise

    def make(family):
        folder = tmp_path_factory.mktemp("others") / family
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **OTHERS[family]), dtype=torch.float32)
        randomise(model)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("family", OTHERS)
def test_families_without_a_table(family, others, tmp_path, caplog):
    folder = others(family)
    written = loaded(deepen.scale(folder, tmp_path / "deep", layers="0:3,1:4"), caplog)
    virtual, _ = deepen.load(folder, "0:3,1:4")
    expected = replayed_logits(folder, parse_plan(4, layers="0:3,1:4"))
    torch.testing.assert_close(logits(written), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(virtual), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", OTHERS)
def test_identity_is_proved_or_refused(family, others, tmp_path, caplog):
    """Zeroing only `o_proj` and `down_proj` is not the identity where projections have other names."""
    folder = others(family)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    written = loaded(deepen.scale(folder, tmp_path / "deep", expand=2), caplog)
    assert torch.equal(logits(written), logits(base))


def test_an_unknown_projection_is_refused(tmp_path):
    folder = make_checkpoint("llama", tmp_path / "base")
    state = load_file(folder / "model.safetensors")
    for layer in range(6):
        state[f"model.layers.{layer}.self_attn.mystery.weight"] = torch.ones(32, 32)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    deepen.scale(folder, tmp_path / "copies", drop=2)
    with pytest.raises(UnsupportedModelError, match="mystery"):
        deepen.scale(folder, tmp_path / "identity", drop=2, identity_init=True)
    assert not (tmp_path / "identity").exists()


def test_index_and_metadata_are_complete(tmp_path):
    """Files without `format: pt`, and an index whose `total_size` is 0."""
    folder = make_checkpoint("llama", tmp_path / "base")
    out = deepen.scale(folder, tmp_path / "deep", drop=2, shard_size="30kB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = tensors(out)
    assert index["metadata"]["total_size"] == sum(map(len, found.values())) > 0
    assert set(index["weight_map"]) == set(found)
    for file in set(index["weight_map"].values()):
        assert b'"__metadata__":{"format":"pt"}' in (out / file).read_bytes()
