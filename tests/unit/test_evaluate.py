"""Perplexity: which token is scored where, the number and its error against numpy by hand, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import CheckpointError, DataError, OptionError
from deepen.evaluate import evaluate
from deepen.evaluate.perplexity import Span, spans
from deepen.evaluate.statistics import ratio_interval
from deepen.evaluate.stream import transformers_encoder
from trainable import write_checkpoint, write_text


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", initializer_range=0.3)  # wide enough that tokens differ in likelihood


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt", 60)


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "expected"),
    [
        (8, 4, 4, [(0, 4, 1), (4, 8, 5)]),
        (10, 4, 4, [(0, 4, 1), (4, 8, 5), (8, 10, 9)]),
        (9, 4, 4, [(0, 4, 1), (4, 8, 5)]),  # the ninth token has no context and is not scored
        (8, 4, 2, [(0, 4, 1), (2, 6, 4), (4, 8, 6)]),
        (9, 4, 2, [(0, 4, 1), (2, 6, 4), (4, 8, 6), (6, 9, 8)]),
        (6, 4, 3, [(0, 4, 1), (3, 6, 4)]),
        (6, 4, 1, [(0, 4, 1), (1, 5, 4), (2, 6, 5)]),
        (3, 4, 2, [(0, 3, 1)]),
        (2, 4, 4, [(0, 2, 1)]),
        (1, 4, 4, []),
        (0, 4, 4, []),
    ],
)
def test_windows_and_what_they_score(tokens: int, window: int, stride: int, expected: list[tuple[int, int, int]]) -> None:
    assert spans(tokens, window, stride) == [Span(*each) for each in expected]


@given(tokens=st.integers(2, 300), window=st.integers(2, 40), data=st.data())
def test_overlapping_windows_score_every_token_but_the_first_once(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    found = spans(tokens, window, stride)
    assert [place for span in found for place in range(span.first, span.end)] == list(range(1, tokens))
    assert all(span.first - span.begin >= window - stride for span in found[1:])
    assert all(span.end - span.begin <= window for span in found)


def by_hand(model: Path, text: Path, window: int, stride: int, count: int | None = None) -> tuple[list[np.ndarray], int]:
    """Negative log-likelihoods per window, from logits in float64; tokens are bytes + 1."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = (np.frombuffer(text.read_bytes(), dtype=np.uint8).astype(np.int64) + 1)[:count]
    parts, scored = [], 0
    for begin in range(0, len(tokens), stride):
        row = tokens[begin : begin + window]
        with torch.no_grad():
            logits = network(input_ids=torch.from_numpy(row[None])).logits[0].double().numpy()
        log_likelihoods = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = range(max(scored, begin + 1), begin + len(row))
        parts.append(-np.array([log_likelihoods[place - begin - 1, tokens[place]] for place in places]))
        scored = begin + len(row)
        if scored == len(tokens):
            break
    return [part for part in parts if part.size], len(tokens)


@pytest.mark.parametrize(("window", "stride"), [(64, None), (64, 16), (50, 50), (128, 1)])
def test_perplexity_is_what_the_logits_say(model: Path, text: Path, window: int, stride: int | None) -> None:
    parts, count = by_hand(model, text, window, stride or window)
    values = np.concatenate(parts)
    report = evaluate(model, data=[text], window=window, stride=stride)
    task = report.tasks["perplexity"]
    assert task["value"] == pytest.approx(math.exp(values.mean()), rel=1e-6)
    assert task["nats_per_token"] == pytest.approx(values.mean(), rel=1e-6)
    assert task["bits_per_byte"] == pytest.approx(values.mean() / math.log(2), rel=1e-6)  # a token is a byte here
    assert (task["n"], task["tokens"], task["windows"]) == (len(values), count, len(parts))
    assert (task["window"], task["stride"], task["shots"], task["metric"]) == (window, stride or window, 0, "perplexity")
    assert report.average == task["value"]


def test_a_slice_of_the_data(model: Path, text: Path) -> None:
    values = np.concatenate(by_hand(model, text, 32, 32, count=100)[0])
    assert evaluate(model, data=text, window=32, tokens="0.1k").average == pytest.approx(math.exp(values.mean()), rel=1e-6)
    parts = by_hand(model, text, 32, 32)[0]
    count = len(parts)
    chosen = [parts[place * count // 3] for place in range(3)]
    task = evaluate(model, data=text, window=32, limit=3).tasks["perplexity"]
    assert task["nats_per_token"] == pytest.approx(np.concatenate(chosen).mean(), rel=1e-6)
    assert (task["windows"], task["all_windows"], task["n"]) == (3, count, sum(map(len, chosen)))
    assert task["rows"] == sum(map(len, parts))


def test_per_byte_and_per_word(model: Path, tmp_path: Path) -> None:
    """A token is a byte here, so every scored byte is known; the first, of the first word, has no context and is not scored."""
    text = tmp_path / "text.txt"
    text.write_text("Größe 12 €, näher  am\n\tMeer 🌊 als\u00a0je \n")
    total = np.concatenate(by_hand(model, text, 128, 128)[0]).sum()
    task = evaluate(model, data=text, window=128).tasks["perplexity"]
    size = len(text.read_bytes()) - 1
    words = len(text.read_text().split()) - 1
    assert (task["bytes"], task["words"], task["n"]) == (size, words, size)
    assert task["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)
    assert task["byte_perplexity"] == pytest.approx(math.exp(total / size), rel=1e-6)
    assert task["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-6)


def test_the_interval_is_over_documents(model: Path, tmp_path: Path) -> None:
    rows = [" ".join(["the old river"] * count) for count in range(1, 13)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    report = evaluate(model, data=data, window=64)
    task = report.tasks["perplexity"]
    assert (task["documents"], task["interval_over"], task["units"]) == (12, "documents", 12)
    items = report.results["perplexity"].items
    assert [item.facts["bytes"] for item in items][1:] == pytest.approx([len(row) for row in rows[1:]], abs=12)
    found = ratio_interval([item.facts["nats"] for item in items], [item.facts["tokens"] for item in items])
    assert task["value"] == pytest.approx(math.exp(found.value))
    assert (task["low"], task["high"]) == pytest.approx((math.exp(found.low), math.exp(found.high)))
    assert task["low"] < task["value"] < task["high"]


def test_tokens_that_split_a_character_share_its_bytes(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "aé€🌊 z"
    ids, ends = transformers_encoder(tokenizer)(text)
    assert len(ids) == len(text.encode())
    assert ends[-1] == len(text.encode())
    assert (np.diff(ends) >= 0).all()


def test_the_standard_error_is_that_of_a_ratio_of_window_totals(model: Path, text: Path) -> None:
    parts, _ = by_hand(model, text, 32, 32)
    task = evaluate(model, data=text, window=32).tasks["perplexity"]
    found = ratio_interval([part.sum() for part in parts], [part.size for part in parts])
    assert task["stderr"] == pytest.approx(task["value"] * found.stderr, rel=1e-5)
    assert (task["interval_over"], task["units"]) == ("windows", len(parts))


def test_a_plan_is_judged_without_being_written(model: Path, text: Path) -> None:
    plain = evaluate(model, data=text, window=64).average
    assert evaluate(model, data=text, window=64, layers="0:2").average == pytest.approx(plain, rel=1e-6)
    assert evaluate(model, data=text, window=64, repeat="0:2", identity_init=True).average == pytest.approx(plain, rel=1e-6)
    assert abs(evaluate(model, data=text, window=64, repeat="0:2").average / plain - 1) > 1e-3


def test_the_report_is_json_with_the_promised_keys(model: Path, text: Path) -> None:
    report = evaluate(model, data=text, window=64)
    content = json.loads(json.dumps(report.to_dict()))
    assert {"model", "suite", "tasks", "average", "seconds", "energy_joules", "versions"} <= content.keys()
    assert {"metric", "value", "stderr", "n", "shots", "low", "high"} <= content["tasks"]["perplexity"].keys()
    assert (content["model"], content["suite"], content["energy_joules"]) == (str(model), "perplexity", None)
    assert content["versions"]["torch"] == torch.__version__
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.average = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"suite": "h7"}, "no suite is called 'h7'"),
        ({"window": 1}, "a window of 1 tokens every 1 tokens"),
        ({"stride": 0}, "every 0 tokens"),
        ({"window": 64, "stride": 65}, "a window of 64 tokens every 65 tokens"),
        ({"window": 129}, "--window: the model takes 2 to 128 tokens at once, not 129"),
        ({"limit": 0}, "0 rows are none"),
        ({"tokens": "few"}, "'few' is not a count"),
    ],
)
def test_options_out_of_range_are_refused(model: Path, text: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        evaluate(model, data=text, **{"window": 64} | changed)


def test_nothing_to_score_is_refused(model: Path, text: Path) -> None:
    with pytest.raises(DataError, match="1 tokens leave nothing to score"):
        evaluate(model, data=text, window=64, tokens=1)


def test_a_broken_model_is_refused(tmp_path: Path, text: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = write_checkpoint(tmp_path / "broken")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"finds the text impossible \(nan nats per token\)"):
        evaluate(model, data=text, window=64)
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        evaluate(model, data=text, window=64)


# GGUF -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_gguf_runs_in_llama_cpp_and_agrees_with_transformers(smollm2: Path, tmp_path: Path) -> None:
    """llama.cpp quantises activations too, which costs some 0.1 %; the reference is transformers' own decoder in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    text = tmp_path / "topic.txt"
    text.write_text(topics["lambda"] + topics["typesseq"][:2000])
    task = evaluate(smollm2, data=text, window=128, tokens=256).tasks["perplexity"]
    network = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    rows = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"][:256]).view(2, 128)
    with torch.no_grad():
        logits = network(input_ids=rows).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert task["nats_per_token"] == pytest.approx(expected, rel=5e-3)
    assert (task["n"], task["windows"]) == (254, 2)
    sizes = [len(tokenizer.decode([each]).encode()) for each in rows[:, 1:].flatten()]
    assert task["bytes"] == sum(sizes)
    assert task["bits_per_byte"] == pytest.approx(254 * task["nats_per_token"] / math.log(2) / sum(sizes))


def test_a_gguf_takes_no_plan_device_or_dtype(smollm2: Path, text: Path) -> None:
    for option in ({"drop": 8}, {"device": "cpu"}, {"dtype": "float32"}):
        with pytest.raises(OptionError, match="a GGUF file is judged as it is"):
            evaluate(smollm2, data=text, **option)
