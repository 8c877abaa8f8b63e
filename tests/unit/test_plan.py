"""Plans are pure: every option, every refusal, and what a plan costs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deepen
from deepen.errors import PlanError
from deepen.plan import Plan, describe, parse_plan
from families import make_checkpoint

# Mistral-7B-v0.1 as its config.json says it
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000, "hidden_act": "silu",
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02,
    "use_cache": True, "transformers_version": "4.34.0.dev0",
}  # fmt: skip


def mistral_7b_headers(folder: Path) -> Path:
    """A folder with Mistral-7B's real config and headers; its data are a hole in a sparse file."""
    layer = {
        "input_layernorm.weight": [4096], "post_attention_layernorm.weight": [4096],
        "self_attn.q_proj.weight": [4096, 4096], "self_attn.k_proj.weight": [1024, 4096],
        "self_attn.v_proj.weight": [1024, 4096], "self_attn.o_proj.weight": [4096, 4096],
        "mlp.gate_proj.weight": [14336, 4096], "mlp.up_proj.weight": [14336, 4096], "mlp.down_proj.weight": [4096, 14336],
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": [32000, 4096], "model.norm.weight": [4096], "lm_head.weight": [32000, 4096]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MISTRAL_7B))
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return folder


def test_mistral_7b_becomes_solar(tmp_path):
    found = describe(mistral_7b_headers(tmp_path / "mistral"), drop=8, as_="llama")
    assert found["num_hidden_layers"] == 48
    assert found["layers"] == [*range(24), *range(8, 32)]
    assert found["seams"] == [{"position": 24, "from": 23, "to": 8, "distance": 15}]
    assert found["parameters"] == 10_731_524_096
    assert found["source_parameters"] == 7_241_732_096
    assert found["weight_bytes"] == found["disk_bytes"] == 2 * 10_731_524_096
    assert found["kv_bytes_per_token"] == 196_608
    # 218,112,000 parameters a layer of which 8,192 are norms, and a head of 32,000 x 4,096; two operations per weight
    assert found["flops_per_token"] == 2 * (48 * (218_112_000 - 8_192) + 32_000 * 4_096)
    assert found["train_bytes"]["float32_adamw"] == 16 * 10_731_524_096
    assert found["train_bytes"]["bfloat16_adamw_8bit"] == 6 * 10_731_524_096
    # a rank-16 adapter adds 16 x (rows + columns) to each of the seven matrices of a layer
    adapters = 16 * 48 * (2 * (4096 + 4096) + 2 * (1024 + 4096) + 3 * (14336 + 4096))
    assert found["train_bytes"]["lora_rank_16"] == 2 * 10_731_524_096 + 16 * adapters
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"drop": 2}, [0, 1, 2, 3, 2, 3, 4, 5]),
        ({"drop": 0}, [0, 1, 2, 3, 4, 5] * 2),
        ({"drop": 3}, [0, 1, 2, 3, 4, 5]),
        ({"layers": "0:4,2:6"}, [0, 1, 2, 3, 2, 3, 4, 5]),
        ({"layers": " 0:2 , 4:6 "}, [0, 1, 4, 5]),
        ({"repeat": "2:4"}, [0, 1, 2, 3, 2, 3, 4, 5]),
        ({"repeat": "2:4x3"}, [0, 1, 2, 3, 2, 3, 2, 3, 4, 5]),
        ({"repeat": "5:6"}, [0, 1, 2, 3, 4, 5, 5]),
        ({"expand": 2}, [0, 1, 2, 2, 3, 4, 5, 5]),
        ({"expand": 4}, [0, 1, 1, 2, 2, 3, 4, 4, 5, 5]),
        ({"expand": 6}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    ],
)
def test_options(options, layers):
    assert list(parse_plan(6, **options).layers) == layers


def test_identity_positions():
    assert parse_plan(6, repeat="2:4", identity_init=True).identity == (4, 5)
    assert parse_plan(6, repeat="2:4x3", identity_init=True).identity == (4, 5, 6, 7)
    assert parse_plan(6, repeat="2:4").identity == ()
    assert parse_plan(6, expand=2).identity == parse_plan(6, expand=2, identity_init=True).identity == (3, 7)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"drop": 1, "repeat": "1:2"}, {"drop": -1}, {"drop": 4}, {"drop": 6}, {"drop": 99}, {"drop": 1.5}, {"drop": True},
        {"drop": "2"}, {"layers": ""}, {"layers": "0:0"}, {"layers": "3:2"}, {"layers": "0:7"}, {"layers": "-1:3"},
        {"layers": "0:2.5"}, {"layers": "0-3"}, {"layers": "a:b"}, {"layers": "0:3,"}, {"layers": "3"}, {"layers": ":"},
        {"layers": "0:6," * 2000 + "0:6"}, {"layers": "0:10000"}, {"layers": "0:999999999"}, {"layers": "0:9999999999"},
        {"layers": "\u0660:\u0663"}, {"repeat": "4:2"}, {"repeat": "2:2"}, {"repeat": "2:9"}, {"repeat": "1:3x1"},
        {"repeat": "1:3x0"},
        {"repeat": "1:3x-2"}, {"repeat": "1:3x9999"}, {"repeat": "1"}, {"expand": 0}, {"expand": 7}, {"expand": -2},
        {"expand": 1.0}, {"plan": "no/such/file.yaml"},
    ],
)  # fmt: skip
def test_refused(options):
    with pytest.raises(PlanError) as caught:
        parse_plan(6, **options)
    assert caught.value.exit_code == 2


@given(st.integers(1, 60), st.data())
def test_any_plan_survives_its_yaml(source_layers, data):
    layers = data.draw(st.lists(st.integers(0, source_layers - 1), min_size=1, max_size=80))
    identity = data.draw(st.sets(st.integers(0, len(layers) - 1)))
    plan = Plan(source_layers, tuple(layers), tuple(sorted(identity)))
    assert parse_plan(source_layers, layers=plan.spec).layers == plan.layers
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(plan.to_yaml())
        file.flush()
        assert parse_plan(source_layers, plan=file.name) == plan


@given(st.integers(2, 80), st.data())
def test_depth_up_scaling_formula(n, data):
    """s = 2 (n - m); one seam of distance n - 2m - 1 (arXiv 2312.15166, section 2)."""
    m = data.draw(st.integers(0, (n - 1) // 2))
    plan = parse_plan(n, drop=m)
    assert plan.num_hidden_layers == 2 * (n - m)
    assert plan.unused == ()
    assert [(seam.position, seam.source, seam.target, seam.distance) for seam in plan.seams] == [
        (n - m, n - m - 1, m, n - 2 * m - 1)
    ]


def test_mergekit_passthrough(tmp_path):
    file = tmp_path / "merge.yml"
    file.write_text(
        "slices:\n- sources:\n  - model: a/b\n    layer_range: [0, 4]\n- sources:\n  - model: a/b\n    layer_range: [2, 6]\n"
        "merge_method: passthrough\ndtype: bfloat16\n"
    )
    assert list(parse_plan(6, plan=file).layers) == [0, 1, 2, 3, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "layers: 7\n", "layers: 0:4\nsourcelayers: 6\n", "layers: [0, 1.5]\n", "layers: 0:7\n", "layers: []\n",
        "source_layers: 5\nlayers: 0:4\n", "layers: 0:4\nidentity: [4]\n", "layers: [true]\n", "layers: 0:4\nlayers: 0:5\n",
        "merge_method: slerp\nslices: []\n", "merge_method: passthrough\nslices: []\n",
        "merge_method: passthrough\nslices: 3\n",
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [5, 2]}\n",
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [-2, 6]}\n",
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [0, 9]}\n",
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [0, 3]}\n"
        "  - {model: b, layer_range: [0, 3]}\n",
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 3]}]\n"
        "- sources: [{model: b, layer_range: [0, 3]}]\n",
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 3], parameters: {scale: 0.5}}]\n",
        "merge_method: passthrough\nparameters: {scale: 2}\nslices:\n- sources: [{model: a, layer_range: [0, 3]}]\n",
        "!!python/object/apply:os.system [true]\n", "a: &a [*a]\n", "\x00", "layers: {",
    ],
)  # fmt: skip
def test_bad_plan_files(tmp_path, text):
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(deepen.errors.UserError) as caught:
        parse_plan(6, plan=file)
    assert str(file) in str(caught.value)


def test_explain_names_runs_and_seams():
    text = parse_plan(32, drop=8).explain()
    assert "32 layers become 48" in text
    assert "seam 23 → 8, distance 15" in text
    assert "base  8-31" in text


def test_plan_of_a_checkpoint(tmp_path):
    folder = make_checkpoint("llama", tmp_path / "llama")
    assert deepen.plan(folder, drop=2) == Plan(6, (0, 1, 2, 3, 2, 3, 4, 5))
    with pytest.raises(PlanError, match="out of range"):
        deepen.plan(folder, layers="0:7")


def test_prices_are_those_of_the_written_model(tmp_path):
    from transformers import AutoModelForCausalLM

    for family in ("llama", "gpt_neox", "gemma2"):
        folder = make_checkpoint(family, tmp_path / family)
        found = describe(folder, drop=2)
        model = AutoModelForCausalLM.from_pretrained(deepen.scale(folder, tmp_path / f"{family}-deep", drop=2))
        assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert found["weight_bytes"] == 4 * found["parameters"]


def test_experts_count_by_their_share(tmp_path):
    folder = make_checkpoint("mixtral", tmp_path / "mixtral")
    found = describe(folder, layers="0:6")
    attention = 32 * (32 + 16 + 16 + 32)
    experts, router = 2 * 3 * 48 * 32, 4 * 32
    assert found["flops_per_token"] == 2 * (6 * (attention + experts + router) + 96 * 32)
