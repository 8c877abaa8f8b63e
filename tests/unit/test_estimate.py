"""The estimate of a training against published runs, against numbers worked out by hand, and against what the loop checks."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.architecture import Dimensions
from deepen.checkpoint import Tensor, open_checkpoint
from deepen.errors import OptionError, ResourceError
from deepen.plan import describe, read_facts
from deepen.plan.accelerators import ACCELERATORS, find_accelerator
from deepen.plan.estimate import BETWEEN_NODES, estimate, estimate_training, training_flops
from deepen.plan.memory import Setup, training_bytes
from deepen.plan.price import Facts
from families import make_checkpoint
from tinygguf import write_tiny_gguf

PAGE = Path(__file__).parents[2] / "docs" / "estimates.md"


def model(layers: int, width: int, between: int, heads: int, kv_heads: int, words: int, *, tied: bool = False):
    """Facts and sizes of a Llama, without a file."""
    kv = width // heads * kv_heads
    shapes = [(width, width), (kv, width), (kv, width), (width, width), (between, width), (between, width), (width, between)]
    file = Path("model.safetensors")
    layer = [Tensor(f"{place}", "BF16", shape, file, 0, 2 * shape[0] * shape[1]) for place, shape in enumerate(shapes)]
    outside = [Tensor(f"out{n}", "BF16", (words, width), file, 0, 2 * words * width) for n in range(1 if tied else 2)]
    facts = Facts([layer] * layers, outside, [2 * kv] * layers, {}, words * width)
    sizes = Dimensions(
        layers, width, between, heads, kv_heads, width // heads, words, 131072, tied, (2 * kv,) * layers, 0, 0
    )  # fmt: skip
    return facts, sizes


LLAMA_2_7B, LLAMA_2_13B = (32, 4096, 11008, 32, 32, 32000), (40, 5120, 13824, 40, 40, 32000)
LLAMA_3_8B = (32, 4096, 14336, 32, 8, 128256)
SMOLLM3 = (36, 2048, 11008, 16, 4, 128256)
TORCHTITAN = "torchtitan, Llama 3.1 8B"
LLAMA_2 = "Llama 2, arXiv:2307.09288 table 2"
# source, shape, accelerator, how many, tokens of a row, tokens per second and GPU
PUBLISHED = [
    (f"{TORCHTITAN}, FSDP2", LLAMA_3_8B, "h100", 8, 8192, 5762),
    (f"{TORCHTITAN}, FSDP2 and compile", LLAMA_3_8B, "h100", 8, 8192, 6667),
    (f"{TORCHTITAN}, FSDP2, 128 GPUs", LLAMA_3_8B, "h100", 128, 8192, 5605),
    (f"{TORCHTITAN}, FSDP2 and compile, 128 GPUs", LLAMA_3_8B, "h100", 128, 8192, 6514),
    ("fms-fsdp, Llama 2 7B, HSDP", LLAMA_2_7B, "h100", 96, 4096, 9600),
    ("fms-fsdp, 13B, selective checkpointing", LLAMA_2_13B, "h100", 96, 4096, 4850),
    ("KempnerForge, 7B, FSDP", LLAMA_3_8B, "h200", 4, 4096, 9746),
    ("KempnerForge, 13B, FSDP", LLAMA_2_13B, "h200", 8, 4096, 4426),
    ("nanotron, SmolLM3 3B, by a third party", SMOLLM3, "h100", 384, 4096, 14000),
    (f"{LLAMA_2}, 7B: 184,320 hours", LLAMA_2_7B, "a100", 1024, 4096, 2e12 / 184_320 / 3600),
    (f"{LLAMA_2}, 13B: 368,640 hours", LLAMA_2_13B, "a100", 1024, 4096, 2e12 / 368_640 / 3600),
]


def deviations() -> dict[str, float]:
    """How much faster (above zero) the estimate is than what was published."""
    return {
        source: estimate(*model(*shape, tied=shape is SMOLLM3), gpu=gpu, gpus=count, sequence_length=length).tokens_per_second
        / count
        / seen
        - 1
        for source, shape, gpu, count, length, seen in PUBLISHED
    }


def test_most_published_runs_are_met_within_a_quarter():
    found = deviations()
    met = [source for source, each in found.items() if abs(each) <= 0.25]
    assert len({source.partition(",")[0] for source in met}) >= 4, "by four different programs"
    assert len(met) >= 8, found
    assert all(abs(each) <= 0.5 for each in found.values()), found


def test_the_page_shows_every_published_run_as_it_is_estimated():
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\|[^|]+\|[^|]+\| ([+-]\d+) % \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert {source: int(each) for source, each in rows} == {source: round(100 * each) for source, each in deviations().items()}


def test_the_page_lists_every_accelerator():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d.,]+) \|", PAGE.read_text(), flags=re.MULTILINE)
    assert {name: float(peak.replace(",", "")) for name, peak in rows} == {
        name: kind.flops / 1e12 for name, kind in ACCELERATORS.items()
    }


def test_flops_are_those_of_six_per_weight_and_twelve_for_attention():
    flops, again = training_flops(*model(*LLAMA_2_7B), 4096)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert flops == 6 * weights + 12 * 32 * 4096 * 4096
    assert again == flops // 3 - 2 * 32000 * 4096


def test_what_does_not_learn_saves_its_gradients():
    shape = model(*LLAMA_2_7B)
    whole, _ = training_flops(*shape, 4096)
    adapters, _ = training_flops(*shape, 4096, train="lora")
    added, _ = training_flops(*shape, 4096, train="repeated", repeated=(30, 31))
    every, _ = training_flops(*shape, 4096, train="repeated", repeated=tuple(range(32)))
    assert 2 * whole / 3 < adapters < whole
    assert whole / 3 < added < adapters
    assert every == whole - 2 * 32000 * 4096  # the head does not learn


@given(st.sampled_from(sorted(set(ACCELERATORS) - {"cpu"})), st.integers(1, 200), st.integers(1, 10**12))
def test_time_energy_and_money_belong_together(gpu, gpus, tokens):
    facts, sizes = model(4, 512, 1024, 8, 8, 1000)
    found = estimate(facts, sizes, gpu=gpu, gpus=gpus, tokens=tokens, price=2.0)
    assert found.gpu_hours == pytest.approx(gpus * found.seconds / 3600)
    assert found.energy_joules == pytest.approx(found.gpu_hours * 3600 * ACCELERATORS[gpu].watts)
    assert found.cost_usd == pytest.approx(2 * found.gpu_hours)
    assert found.tokens_per_second * found.seconds == pytest.approx(tokens)
    assert found.replicas == max(1, -(-gpus // 8))
    assert found.mfu == pytest.approx(0.4 * (BETWEEN_NODES if gpus > 8 else 1), abs=1e-4)


def test_memory_is_what_a_training_is_checked_against(tmp_path):
    folder = make_checkpoint("llama", tmp_path / "model", num_hidden_layers=4)
    found = estimate_training(folder, gpu="h100", gpus=4, sequence_length=32)
    setup = Setup(sequence_length=32, precision="bfloat16", ranks=4)
    assert found.memory_parts_bytes == training_bytes(open_checkpoint(folder), setup, "cuda")
    assert found.memory_per_gpu_bytes["float32_adamw"] == sum(found.memory_parts_bytes.values())
    alone = estimate_training(folder, gpu="cpu", gpus=2, sequence_length=32)
    assert alone.memory_parts_bytes == training_bytes(open_checkpoint(folder), Setup(sequence_length=32), "cpu")
    deeper = estimate_training(folder, plan={"drop": 1}, gpu="cpu", gpus=2, sequence_length=32)
    facts, sizes = read_facts(open_checkpoint(folder))
    assert deeper.train_flops_per_token == training_flops(
        replace(facts, layers=[*facts.layers[:3], *facts.layers[1:]], kv_elements=facts.kv_elements[:3] * 2), sizes, 32
    )[0]  # fmt: skip


def test_solar_needs_checkpointing_on_a_node_of_h100s_and_says_how_many_where_it_does_not_fit():
    solar = model(48, 4096, 14336, 32, 8, 32000)
    found = estimate(*solar, gpu="H100", gpus=64, tokens=10**11)
    assert found.activation_checkpointing
    state = found.memory_parts_bytes["weights, gradients, optimizer"]
    assert state == pytest.approx(16 * 10_731_524_096 / 8, rel=1e-4)
    with pytest.raises(ResourceError, match="--gpus 3") as refusal:
        estimate(*solar, gpu="h100", gpus=1)
    count = int(re.search(r"--gpus (\d+)", str(refusal.value))[1])
    estimate(*solar, gpu="h100", gpus=count)
    with pytest.raises(ResourceError):
        estimate(*solar, gpu="h100", gpus=count - 1)
    with pytest.raises(ResourceError, match="no number of them would do"):
        estimate(*solar, gpu="l4", gpus=8)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"gpu": "h10"}, "did you mean h100"),
        ({"gpu": "nvidia h200x"}, "did you mean h200"),
        ({"gpu": "?"}, "use one of a10"),
        ({"gpu": "h100", "gpus": 0}, "--gpus: 0 is not above zero"),
        ({"gpu": "h100", "gpus": -8}, "--gpus"),
        ({"gpu": "h100", "tokens": 0}, "--tokens"),
        ({"gpu": "h100", "mfu": 40}, "--mfu: 40 is more than the whole"),
        ({"gpu": "h100", "price": float("nan")}, "--price"),
        ({"gpu": "h100", "sequence_length": 0}, "--sequence-length"),
    ],
)
def test_nonsense_is_refused_by_its_option(run, says):
    with pytest.raises(OptionError, match=re.escape(says)):
        estimate(*model(4, 512, 1024, 8, 8, 1000), **run)


def test_names_are_found_however_they_are_written():
    assert find_accelerator(" A100 40GB ") is find_accelerator("a100_40gb") is ACCELERATORS["a100-40gb"]


def test_a_gguf_and_a_checkpoint_without_a_plan_are_estimated(tmp_path):
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    found = describe(gguf, run={"gpu": "cpu", "gpus": 2, "tokens": 1000})
    assert found["num_hidden_layers"] == found["source_layers"]
    assert found["estimate"]["train_flops_per_token"] > 3 * found["flops_per_token"]
    assert "estimate" not in describe(gguf, drop=0)
