"""Architecture: what a config and its tensor names say about depth, checked against transformers itself."""

import contextlib
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepen.architecture import (
    Stack,
    as_llama,
    deepen_config,
    dimensions,
    extra_layers,
    find_stack,
    join_name,
    residual_writers,
    split_name,
    warnings_for,
)
from deepen.architecture.patterns import IMPLIED
from deepen.errors import CheckpointError, OptionError, UnsupportedModelError, UserError
from families import FAMILIES, TIED, TOKENIZER_VOCABULARY, add_tokenizer, make_checkpoint, make_config

LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "indexer_types", "layers_block_type", "attention_layers")
SETS = ("moe_layers", "mlp_only_layers")
LAYER = ("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight")
WHERE = "model"


def names_of(n: int, prefix: str = "model.layers.", rests: tuple[str, ...] = LAYER) -> list[str]:
    return [f"{prefix}{i}.{rest}" for i in range(n) for rest in rests] + ["model.embed_tokens.weight"]


def llama(n: int = 4, **fields: Any) -> dict[str, Any]:
    return {"model_type": "llama", "num_hidden_layers": n, "hidden_size": 32, "num_attention_heads": 4} | fields


def stack_of(n: int, key: str = "num_hidden_layers") -> Stack:
    return Stack("model.layers.", n, key)


def deepen(config: dict[str, Any], layers: list[int], key: str = "num_hidden_layers") -> dict[str, Any]:
    return deepen_config(config, layers, stack_of(config[key], key))


# The stack


def test_the_stack_is_found_and_names_come_apart_at_the_anchored_index_only():
    stack = find_stack(llama(), names_of(4), WHERE)
    assert stack == Stack("model.layers.", 4, "num_hidden_layers")
    expert = "model.layers.3.mlp.experts.2.w1.weight"
    assert split_name(stack, expert) == (3, "mlp.experts.2.w1.weight")
    assert join_name(stack, 7, "mlp.experts.2.w1.weight") == "model.layers.7.mlp.experts.2.w1.weight"
    assert split_name(stack, "model.embed_tokens.weight") is None
    assert split_name(stack, "other.layers.3.mlp.weight") is None


@pytest.mark.parametrize(("key", "prefix"), [("n_layer", "h."), ("n_layers", "transformer.blocks."), ("num_layers", "a.b.")])
def test_other_spellings_of_depth_and_prefix(key: str, prefix: str):
    config = {"model_type": "made_up", key: 12}
    assert find_stack(config, names_of(12, prefix), WHERE) == Stack(prefix, 12, key)


@pytest.mark.parametrize("depth", [None, True, "4", 4.0, -1, 0, 10_001, 10**30, [4]])
def test_a_senseless_depth_is_refused(depth: object):
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        find_stack(llama(num_hidden_layers=depth), names_of(4), WHERE)


def test_config_and_tensors_that_disagree_are_refused():
    with pytest.raises(CheckpointError, match=r"says 6 layers.*lack 2 of them \(model\.layers\.4, model\.layers\.5\)"):
        find_stack(llama(6), names_of(4), WHERE)
    with pytest.raises(CheckpointError, match="says 3 layers, but the tensors hold 4"):
        find_stack(llama(3), names_of(4), WHERE)
    with pytest.raises(CheckpointError, match="several depths"):
        find_stack(llama(4, n_layer=5), names_of(4), WHERE)


def test_missing_layers_and_missing_tensors_are_named():
    names = names_of(4)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\b"):
        find_stack(llama(), [name for name in names if ".2." not in name], WHERE)
    with pytest.raises(CheckpointError, match=r"layer 1 lacks 1 tensors.*model\.layers\.1\.mlp\.down_proj\.weight"):
        find_stack(llama(), [name for name in names if name != "model.layers.1.mlp.down_proj.weight"], WHERE)


def test_layers_of_different_kind_may_hold_different_tensors():
    kinds = ["linear_attention", "full_attention"] * 2
    names = [f"model.layers.{i}.{kind}.weight" for i, kind in enumerate(kinds)]
    config = {"model_type": "made_up", "num_hidden_layers": 4, "layer_types": kinds}
    assert find_stack(config, names, WHERE).num_hidden_layers == 4
    with pytest.raises(CheckpointError, match="lacks"):
        find_stack(config | {"layer_types": kinds[:1] * 4}, names, WHERE)


def test_a_quantiser_may_leave_single_modules_alone():
    names = [*names_of(4), "model.layers.2.mlp.down_proj.weight_scale"]
    assert find_stack(llama(quantization_config={"quant_method": "fp8"}), names, WHERE).num_hidden_layers == 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "bert", "num_hidden_layers": 4}, "encoder"),
        ({"model_type": "t5", "num_layers": 4}, "encoder-decoder"),
        ({"model_type": "new", "is_encoder_decoder": True, "num_layers": 4}, "encoder-decoder"),
        ({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.3"}, "diffusion"),
        (llama(vision_config={"hidden_size": 4}), "extract the language model"),
        (llama(model_type="gemma3", text_config={"num_hidden_layers": 4}), "extract the language model"),
        (llama(model_type="diffllama"), "index of the layer"),
        (llama(model_type="zamba2"), "share"),
        (llama(model_type="gemma3n_text"), "sized by depth"),
    ],
)
def test_other_kinds_of_model_are_refused_with_the_reason(config: dict[str, Any], reason: str):
    with pytest.raises(UnsupportedModelError, match=reason):
        find_stack(config, names_of(4), WHERE)


def test_a_second_stack_or_none_is_refused():
    with pytest.raises(UnsupportedModelError, match="2 stacks"):
        find_stack(llama(), [*names_of(4), *names_of(2, "vision_tower.layers.")], WHERE)
    with pytest.raises(CheckpointError, match="no tensor"):
        find_stack(llama(), ["model.embed_tokens.weight"], WHERE)
    with pytest.raises(CheckpointError, match="model_type"):
        find_stack(llama(model_type=None), names_of(4), WHERE)


def test_prediction_layers_are_left_out_with_a_warning():
    config = llama(4, num_nextn_predict_layers=1)
    extra = ["model.layers.4.eh_proj.weight", "model.layers.4.mlp.down_proj.weight"]
    names = [*names_of(4), *extra, "mtp.layers.0.fc.weight"]
    stack = find_stack(config, names, WHERE)
    assert extra_layers(config, stack, names) == tuple(sorted([*extra, "mtp.layers.0.fc.weight"]))
    assert split_name(stack, extra[0]) is None
    (warning,) = warnings_for(config, stack, names, [0, 1, 2, 3, 3])
    assert "multi-token-prediction" in warning
    assert deepen(config, [0, 1, 2, 3, 3])["num_nextn_predict_layers"] == 0
    assert warnings_for(llama(), stack, names_of(4), [0]) == ()


# The deepened config


def seen_by_transformers(config: dict[str, Any]) -> dict[str, list[Any]]:
    """What transformers makes of a config, layer by layer."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    n = loaded.num_hidden_layers
    seen = {key: value for key in LISTS if isinstance(value := getattr(loaded, key, None), list) and value}
    for key in SETS:
        if (value := getattr(loaded, key, None)) is not None:
            seen[key] = [i in value for i in range(n)]
    assert all(len(value) == n for value in seen.values())
    return seen


def raw_config(model_type: str, **fields: Any) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return json.loads(json.dumps(CONFIG_MAPPING[model_type](**fields).to_dict()))


VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cohere2": [{"sliding_window_pattern": 3}],
    "exaone4": [{"sliding_window_pattern": 3}],
    "gemma3_text": [{"sliding_window_pattern": 2}],
    "dots1": [{"max_window_layers": 3}, {"sliding_window": None}],
    "llama4_text": [{"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3}],
    "qwen2": [{"use_sliding_window": True, "max_window_layers": 3}],
    "qwen2_moe": [{"use_sliding_window": True, "max_window_layers": 5, "decoder_sparse_step": 1}],
    "qwen3": [{"use_sliding_window": True, "max_window_layers": 3}],
    "qwen3_next": [{"full_attention_interval": 3}],
    "qwen3_5_text": [{"full_attention_interval": 3}],
    "smollm3": [{"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 3}],
    "gpt_neo": [{"attention_types": [[["global", "local"], 4]]}],
    "bailing_hybrid": [{"layer_group_size": 3}],
    "deepseek_v3": [{"first_k_dense_replace": 1}],
    "deepseek_v32": [{"first_k_dense_replace": 1}],
    "glm_moe_dsa": [{"first_k_dense_replace": 1, "index_topk_freq": 2}],
}
# Jamba keeps to its periods; the others' defaults (24 listed layers, three dense ones) do not suit these plans.
WITHOUT_DEFAULTS = {"gpt_neo", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"}
CASES = [
    (family, fields)
    for family in sorted(IMPLIED.keys() - {"jamba"})
    for fields in [*([] if family in WITHOUT_DEFAULTS else [{}]), *VARIANTS.get(family, [])]
]


@pytest.mark.parametrize(("family", "fields"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
@pytest.mark.parametrize("layers", [[0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7], [0, 1, 1, 2, 3, 4, 5, 6, 6, 7], [0, 3, 6]])
@pytest.mark.parametrize("explicit", [True, False])
def test_per_layer_lists_follow_the_plan_as_transformers_derives_them(
    family: str, fields: dict[str, Any], layers: list[int], explicit: bool
):
    depth = "num_layers" if family == "gpt_neo" else "num_hidden_layers"
    config = raw_config(family, **{depth: 8}, **fields)
    if not explicit:
        config = {key: value for key, value in config.items() if key not in IMPLIED[family]} | fields
    before = copy.deepcopy(config)
    deepened = deepen(config, layers, depth)
    assert config == before
    assert deepened[depth] == len(layers)
    source = seen_by_transformers(config)
    assert seen_by_transformers(deepened) == {key: [value[i] for i in layers] for key, value in source.items()}


def test_every_causal_model_of_transformers_is_right_or_refused():
    """No family may slip through: its lists follow the plan after loading, or it is refused."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    layers = [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    treated = []
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = raw_config(family, num_hidden_layers=8)
            seen_by_transformers(config)
        except (StrictDataclassError, NotImplementedError, AttributeError, AssertionError):
            continue  # transformers itself has no 8-layer default of it
        bare = {key: value for key, value in config.items() if key not in LISTS + SETS}
        depth = next((key for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if config.get(key)), "")
        for raw in (config, bare) if depth else ():
            try:
                deepened = deepen(raw, layers, depth)
            except UserError:
                continue
            expected = seen_by_transformers(raw)
            assert seen_by_transformers(deepened) == {k: [v[i] for i in layers] for k, v in expected.items()}, family
            assert deepened[depth] == len(layers)
            treated.append(family)
    assert {"llama", "gpt2", "bloom", "falcon", "qwen3_next", "minicpm3", "starcoder2", "stablelm"} <= set(treated)
    assert len(set(treated)) > 90


@pytest.mark.parametrize("n", [2, 4, 6, 8, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_named_families_pass_at_any_depth(family: str, n: int):
    config = json.loads(json.dumps(make_config(family, num_hidden_layers=n).to_dict()))
    layers = [*range(n), *range(n - n % 2 - 2, n)] if family == "qwen3_moe" else [*range(n), n - 1]
    deepened = deepen(config, layers)
    assert deepened["num_hidden_layers"] == len(layers)
    changed = {key for key in deepened if deepened[key] != config.get(key)}
    lists = {key for key in LISTS if config.get(key)}
    assert changed == {"num_hidden_layers"} | lists | ({"num_nextn_predict_layers"} & changed)
    assert list(deepened)[: len(config)] == list(config)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8, 32])
def test_a_model_type_that_nobody_knows_works(n: int):
    config = {
        "model_type": "made_up",
        "architectures": ["MadeUpForCausalLM", "Other"],
        "auto_map": {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"},
        "num_hidden_layers": n,
        "eos_token_id": list(range(n)),
        "id2label": {str(i): "x" for i in range(n)},
        "rope_scaling": {"type": "longrope", "long_factor": [1.0] * n, "short_factor": [1.0] * n},
        "layer_norm_epsilon": 1e-5,
        "layerdrop": 0.1,
        "num_experts": 8,
        "num_attention_heads": n,
        "use_sliding_window": False,
        "max_window_layers": 28,
    }
    assert deepen(config, [0, 1, 1]) == config | {"num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attention_pattern": "LG"}, "attention_pattern"),
        ({"global_interval": 3}, "global_interval"),
        ({"dense_layers": 2}, "dense_layers"),
        ({"wide": [1, 2, 3, 4]}, "wide"),
        ({"per": {"a": 1, "b": 2, "c": 3, "d": 4}}, "per"),
        ({"inner": {"depth_scale": 2.0}}, "depth_scale"),
        ({"num_kv_shared_layers": 2}, "reuse the keys"),
        ({"scale_attn_by_inverse_layer_idx": True}, "index of the layer"),
        ({"scale_depth": 1.4}, "scale_depth"),
    ],
)
def test_unknown_fields_about_layers_are_refused_by_name(fields: dict[str, Any], named: str):
    with pytest.raises(UnsupportedModelError, match=named):
        deepen(llama(4, **fields), [0, 1, 2, 3, 3])
    deepen(llama(4, **dict.fromkeys(fields)), [0, 1, 2, 3, 3])


def test_lists_of_the_wrong_length_or_type_are_the_checkpoints_fault():
    with pytest.raises(CheckpointError, match=r"layer_types.*3 entries for 4 layers"):
        deepen(llama(4, layer_types=["full_attention"] * 3), [0])
    with pytest.raises(CheckpointError, match="mlp_only_layers"):
        deepen(llama(4, mlp_only_layers=["0"]), [0])
    with pytest.raises(CheckpointError, match="max_window_layers"):
        deepen(llama(4, model_type="qwen3", use_sliding_window=True, max_window_layers="3"), [0])


def test_a_residual_scaled_by_depth_is_corrected():
    config = llama(4, model_type="minicpm3", scale_depth=1.4)
    deepened = deepen(config, [0, 1, 2, 3] * 4)
    assert deepened["scale_depth"] / 16**0.5 == pytest.approx(1.4 / 4**0.5, rel=1e-15)


def test_a_dense_prefix_grows_and_anything_else_is_refused():
    config = llama(6, model_type="deepseek_v3", first_k_dense_replace=2, moe_layer_freq=1)
    assert deepen(config, [0, 1, 1, 2, 3, 4, 5])["first_k_dense_replace"] == 3
    assert deepen(config, [0, 1, 2, 3, 4, 2, 3, 4, 5])["first_k_dense_replace"] == 2
    with pytest.raises(UnsupportedModelError, match="first_k_dense_replace=2"):
        deepen(config, [0, 1, 2, 3, 1, 2, 3, 4, 5])


def test_sparse_steps_become_a_list_of_dense_layers():
    config = llama(6, model_type="qwen3_moe", num_experts=4, decoder_sparse_step=2, mlp_only_layers=[])
    deepened = deepen(config, [0, 1, 2, 2, 3, 4, 5])
    assert deepened["decoder_sparse_step"] == 1
    assert deepened["mlp_only_layers"] == [0, 2, 3, 5]
    whole_periods = deepen(config, [0, 1, 2, 3, 2, 3, 4, 5])
    assert (whole_periods["decoder_sparse_step"], whole_periods["mlp_only_layers"]) == (2, [])


def test_periods_hold_or_are_refused():
    config = llama(8, model_type="jamba", attn_layer_period=4, attn_layer_offset=2)
    config |= {"expert_layer_period": 2, "expert_layer_offset": 1}
    assert deepen(config, [*range(8), *range(4, 8)])["attn_layer_period"] == 4
    with pytest.raises(UnsupportedModelError, match="layer_period"):
        deepen(config, [0, 0, *range(1, 8)])


def test_ernies_range_of_experts_is_moved():
    config = llama(6, model_type="ernie4_5_moe", moe_layer_start_index=1, moe_layer_end_index=5, moe_layer_interval=1)
    deepened = deepen(config, [0, 0, 1, 2, 3, 4, 5, 5])
    assert (deepened["moe_layer_start_index"], deepened["moe_layer_end_index"]) == (2, 7)


def test_modules_that_a_quantiser_leaves_alone_follow_the_plan():
    skipped = ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.3"]
    config = llama(4, quantization_config={"quant_method": "fp8", "modules_to_not_convert": skipped, "bits": 4})
    quantiser = deepen(config, [0, 1, 1, 2])["quantization_config"]
    assert quantiser == {
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"],
        "bits": 4,
    }


@pytest.mark.parametrize("entry", ["layers.1.mlp", "re:.*layers\\.1\\..*", "model.layers.1*"])
def test_a_quantisers_pattern_with_an_index_is_refused(entry: str):
    with pytest.raises(UnsupportedModelError, match="quantiser"):
        deepen(llama(4, quantization_config={"ignore": [entry]}), [0, 1])
    deepen(llama(4, quantization_config={"ignore": ["re:.*lm_head", "re:.*mlp.gate$"]}), [0, 1])


def test_index_sets_and_maps_are_rebuilt():
    config = llama(12, model_type="made_up", attn_layer_indices=[3, 9], per_layer_config={"03": {"head_dim": 8}})
    deepened = deepen(config, [3, 4, 3])
    assert deepened["attn_layer_indices"] == [0, 2]
    assert deepened["per_layer_config"] == {"0": {"head_dim": 8}, "2": {"head_dim": 8}}


# Mistral as Llama


def test_mistral_becomes_llama_and_computes_the_same_within_the_window(tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    torch.set_num_threads(1)
    folder = make_checkpoint("mistral", tmp_path / "mistral", num_hidden_layers=3)
    mistral = AutoModelForCausalLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    llama_config = as_llama(config, 64)
    assert "sliding_window" not in llama_config
    (folder / "config.json").write_text(json.dumps(llama_config))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.max_position_embeddings == 64
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, mistral(tokens).logits)


def test_llama_stays_as_it_is_and_rope_of_both_generations_is_kept():
    config = llama(max_position_embeddings=2048)
    assert as_llama(config) == config
    old = as_llama(llama(model_type="mistral", rope_theta=1e6, sliding_window=None))
    new = as_llama(llama(model_type="mistral", rope_parameters={"rope_theta": 1e6, "rope_type": "default"}))
    assert old["rope_theta"] == new["rope_parameters"]["rope_theta"] == 1e6
    assert old["max_position_embeddings"] == 4096
    assert old["num_key_value_heads"] == 8  # Mistral's default; Llama's is one per head


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "qwen2"},
        {"auto_map": {"AutoModel": "modeling.M"}},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"attention_bias": True},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
    ],
)
def test_what_llama_cannot_express_is_refused(fields: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match="cannot become a Llama"):
        as_llama(llama(model_type="mistral") | fields)


def test_positions_must_be_positive():
    with pytest.raises(OptionError):
        as_llama(llama(model_type="mistral"), 0)


# What writes into the residual stream


@pytest.mark.parametrize("family", FAMILIES)
def test_silenced_layers_are_the_identity(family: str, tmp_path: Path):
    """With its writers filled, a layer passes the residual stream on unchanged, bit for bit."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    folder = make_checkpoint(family, tmp_path / family)
    base = AutoModelForCausalLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    stack = find_stack(config, tensors.keys(), folder)
    rests = {rest for name in tensors if (found := split_name(stack, name)) for rest in [found[1]]}
    writers = residual_writers(config, rests, folder)
    silent = {2, 4}
    for name, tensor in tensors.items():
        found = split_name(stack, name)
        if found and found[0] in silent and found[1] in writers:
            tensor.fill_(writers[found[1]])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    silenced = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.randint(3, 96, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = silenced(tokens, output_hidden_states=True).hidden_states
        before = base(tokens, output_hidden_states=True).hidden_states
    for i in range(5):
        assert torch.equal(hidden[i], hidden[i + 1]) == (i in silent)
        assert not torch.equal(before[i], before[i + 1])


def test_post_norms_are_silenced_instead_of_projections():
    rests = ["self_attn.o_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"]
    posts = ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"]
    gemma = residual_writers({"model_type": "gemma2"}, [*rests, *posts, "pre_feedforward_layernorm.weight"], WHERE)
    assert gemma == dict.fromkeys(posts, -1.0)
    assert residual_writers({"model_type": "olmo2"}, [*rests[:2], *posts], WHERE) == dict.fromkeys(posts, 0.0)
    llama_like = residual_writers({"model_type": "llama"}, [*rests, posts[0]], WHERE)
    assert llama_like == {"self_attn.o_proj.weight": 0.0, "mlp.down_proj.weight": 0.0}
    with pytest.raises(UnsupportedModelError, match="norms"):
        residual_writers({"model_type": "made_up"}, [*rests, *posts], WHERE)


@pytest.mark.parametrize(
    ("rests", "expected"),
    [
        (["attn.c_attn.weight", "attn.c_proj.bias", "mlp.c_fc.weight", "attn.bias", "ln_1.weight"], ["attn.c_proj.bias"]),
        (["self_attn.dense.weight", "mlp.fc1.bias", "mlp.fc2.bias"], ["mlp.fc2.bias", "self_attn.dense.weight"]),
        (["mlp.w1.weight", "mlp.w2.weight", "mlp.c_proj.weight"], ["mlp.c_proj.weight"]),
        (["feed_forward.w1.weight", "feed_forward.w2.weight"], ["feed_forward.w2.weight"]),
        (["mlp.experts.down_proj", "mlp.experts.down_proj_bias"], ["mlp.experts.down_proj", "mlp.experts.down_proj_bias"]),
        (["linear_attn.out_proj.weight", "linear_attn.A_log"], ["linear_attn.out_proj.weight"]),
    ],
)
def test_writers_by_name(rests: list[str], expected: list[str]):
    assert residual_writers({"model_type": "made_up"}, rests, WHERE) == dict.fromkeys(expected, 0.0)


@pytest.mark.parametrize(
    "rest", ["mlp.magic.weight", "mlp.experts.down_proj_blocks", "layer_scalar", "mlp.down_proj.weight_scale"]
)
def test_a_tensor_of_unknown_role_is_refused_by_name(rest: str):
    with pytest.raises(UnsupportedModelError, match=rest):
        residual_writers({"model_type": "made_up"}, ["mlp.down_proj.weight", rest], WHERE)


@pytest.mark.parametrize(
    "config", [{"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, {"do_layer_norm_before": False}]
)
def test_a_normed_residual_stream_is_refused(config: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match="residual stream"):
        residual_writers(config, ["mlp.dense_4h_to_h.weight"], WHERE)


# Dimensions


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kv_cache_is_priced_as_transformers_fills_it(family: str):
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(1)
    config = make_config(family, num_hidden_layers=4)
    sizes = dimensions(json.loads(json.dumps(config.to_dict())), WHERE)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.arange(3, 8)[None], past_key_values=cache, use_cache=True)
    held = tuple((layer.keys.numel() + layer.values.numel()) // 5 for layer in cache.layers)
    assert sizes.kv_elements == held
    assert (sizes.vocab_size, sizes.hidden_size, sizes.num_attention_heads) == (96, 32, 4)


def test_mistral_7b_as_a_deep_llama_is_priced_right():
    mistral = {"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
    mistral |= {"num_key_value_heads": 8, "vocab_size": 32000, "intermediate_size": 14336}
    layers = [*range(24), *range(8, 32)]
    assert sum(dimensions(deepen(as_llama(mistral), layers), WHERE).kv_elements) * 2 == 196_608


def test_linear_layers_cost_no_cache_and_experts_only_their_share():
    config = llama(4, model_type="qwen3_next", vocab_size=96, num_experts=8, num_experts_per_tok=2, decoder_sparse_step=1)
    sizes = dimensions(config, WHERE)
    assert sizes.kv_elements == (0, 0, 0, 64)
    assert sizes.active_share("mlp.experts.3.down_proj.weight") == 0.25
    assert sizes.active_share("mlp.shared_expert.down_proj.weight") == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", "32"), ("hidden_size", 0), ("vocab_size", True), ("num_attention_heads", 10**12), ("head_dim", -8)],
)
def test_senseless_sizes_are_named(field: str, value: object):
    with pytest.raises(CheckpointError, match=field):
        dimensions(llama(vocab_size=96) | {field: value}, WHERE)


def test_architecture_needs_no_torch():
    code = "import sys, deepen.architecture; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Bad configs and the tiny checkpoints themselves


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "smollm3", "gpt_neo", "kimi_linear", "qwen3_moe"])
def test_no_value_of_any_field_ends_in_a_traceback(family: str):
    config = {"model_type": family, "num_hidden_layers": 6} | FAMILIES.get(family, {})
    fields = {*config, "layer_types", "no_rope_layers", "mlp_only_layers", "attention_types", "linear_attn_config"}
    fields |= {"quantization_config", "per_layer_config", "first_k_dense_replace", "moe_layer_freq", "rope_parameters"}
    senseless = [None, True, "x", -1, 0, 1.5, [], ["a"], {}, {"a": 1}, [[1]], 10**30, [None] * 6, float("nan")]
    names = names_of(6)
    for field in sorted(fields):
        for value in senseless:
            broken = config | {field: value}
            for read in (
                lambda broken: find_stack(broken, names, WHERE),
                lambda broken: deepen_config(broken, [0, 1, 2, 3, 4, 5, 5], stack_of(6)),
                lambda broken: dimensions(broken, WHERE),
                as_llama,
                lambda broken: residual_writers(broken, LAYER, WHERE),
            ):
                with contextlib.suppress(UserError):
                    read(broken)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_checkpoints_load_whole_and_generate(family: str, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    folder = make_checkpoint(family, tmp_path / family)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.tie_word_embeddings == (family in TIED)
    prompt = torch.randint(3, 96, (1, 40), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = model.generate(prompt, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    assert cached.shape == (1, 46)


def test_a_tiny_tokenizer_goes_with_a_checkpoint(tmp_path: Path):
    from transformers import AutoTokenizer

    folder = make_checkpoint("llama", tmp_path / "llama", vocab_size=TOKENIZER_VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(add_tokenizer(folder))
    assert len(tokenizer) == TOKENIZER_VOCABULARY
    text = "the layers heal: ünïcode too"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<s>user: hi</s><s>assistant: "
