"""Every family, proved the same way: written = virtual = a replay by hand, on prompts longer than any sliding window."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import deepen
from deepen.architecture import find_stack, split_name
from deepen.plan import parse_plan
from families import FAMILIES, make_checkpoint
from replay import PROMPT, loaded, logits, replayed_logits, tensors

SOURCE_LAYERS = 6

# DeepSeek's one dense layer has to stay first, and only there
PLANS = dict.fromkeys(FAMILIES, "0:5,1:6") | {"deepseek_v3": "0:5,2:6"}
REPEATS = dict.fromkeys(FAMILIES, "1:4") | {"deepseek_v3": "2:4"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    @cache
    def make(family: str) -> Path:
        return make_checkpoint(family, tmp_path_factory.mktemp("source") / family, num_hidden_layers=SOURCE_LAYERS)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_written_equals_virtual_equals_replay(family, source, tmp_path, caplog):
    folder = source(family)
    plan = parse_plan(SOURCE_LAYERS, layers=PLANS[family])
    out = deepen.scale(folder, tmp_path / "deep", layers=PLANS[family])

    written = loaded(out, caplog)
    virtual, _ = deepen.load(folder, {"layers": PLANS[family]})
    expected = replayed_logits(folder, plan)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()

    torch.testing.assert_close(logits(written), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(virtual), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(base), expected, rtol=1e-2, atol=1e-2)  # the comparison can tell models apart
    assert type(virtual) is type(written)
    assert sum(p.numel() for p in virtual.parameters()) == sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_its_planned_source(family, source, tmp_path):
    folder = source(family)
    plan = parse_plan(SOURCE_LAYERS, layers=PLANS[family])
    out = deepen.scale(folder, tmp_path / "deep", layers=PLANS[family], shard_size="20kB")
    assert len(list(out.glob("*.safetensors"))) > 3

    sources, results = tensors(folder), tensors(out)
    stack = find_stack(json.loads((folder / "config.json").read_text()), list(sources), folder)
    expected = {name: data for name, data in sources.items() if split_name(stack, name) is None}
    for position, layer in enumerate(plan.layers):
        expected |= {
            f"{stack.prefix}{position}.{name.removeprefix(f'{stack.prefix}{layer}.')}": data
            for name, data in sources.items()
            if name.startswith(f"{stack.prefix}{layer}.")
        }
    assert results == expected
    assert deepen.verify(out, folder).ok
    assert deepen.verify(out).equal == len(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_plan_changes_no_byte(family, source, tmp_path):
    folder = source(family)
    out = deepen.scale(folder, tmp_path / "same", layers=f"0:{SOURCE_LAYERS}")
    assert tensors(out) == tensors(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_uncached(family, source, tmp_path, caplog):
    folder = source(family)
    written = loaded(deepen.scale(folder, tmp_path / "deep", layers=PLANS[family]), caplog)
    virtual, _ = deepen.load(folder, {"layers": PLANS[family]})
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = PROMPT[:1]
    mask = torch.ones_like(prompt)
    texts = [
        model.generate(prompt, attention_mask=mask, use_cache=use_cache, **options)
        for model in (written, virtual)
        for use_cache in (True, False)
    ]
    assert all(torch.equal(text, texts[0]) for text in texts[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_init_computes_what_the_base_does(family, source, tmp_path, caplog):
    folder = source(family)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    out = deepen.scale(folder, tmp_path / "deep", repeat=REPEATS[family], identity_init=True)
    written = loaded(out, caplog)
    virtual, _ = deepen.load(folder, {"repeat": REPEATS[family], "identity_init": True})
    assert written.config.num_hidden_layers > SOURCE_LAYERS
    assert torch.equal(logits(written), logits(base))
    assert torch.equal(logits(virtual), logits(base))
    assert deepen.verify(out, folder).ok


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deepseek_v3"])
def test_expand_computes_what_the_base_does(family, source, tmp_path, caplog):
    folder = source(family)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    written = loaded(deepen.scale(folder, tmp_path / "deep", expand=3), caplog)
    assert written.config.num_hidden_layers == SOURCE_LAYERS + 3
    assert torch.equal(logits(written), logits(base))
