"""Where the engine transformers puts a model, and in what format: GPUs and main memory, never disks; bitsandbytes."""

import importlib.util
import sys

import pytest

from deepen.cli import run_program
from deepen.errors import MissingDependencyError, OptionError, ResourceError
from deepen.generate import generate
from deepen.model import load
from families import TOKENIZER_VOCABULARY, add_tokenizer, make_checkpoint

OPTIONS = {"greedy": True, "max_new_tokens": 12, "engine": "transformers", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("model") / "m", vocab_size=TOKENIZER_VOCABULARY)
    add_tokenizer(folder)
    return folder


def room(monkeypatch, places):
    monkeypatch.setattr(sys.modules["deepen.model"], "_room", lambda: places)


def test_auto_runs_the_same_model(folder):
    plain = generate(folder, "the layers", **OPTIONS)
    assert generate(folder, "the layers", device="auto", **OPTIONS).text == plain.text
    planned = generate(folder, "the layers", device="auto", repeat="1:2", **OPTIONS)
    assert planned.text == generate(folder, "the layers", repeat="1:2", **OPTIONS).text


def test_what_does_not_fit_is_refused_with_both_numbers(folder, monkeypatch, capsys):
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    room(monkeypatch, {"cpu": size // 3})
    with pytest.raises(ResourceError, match=r"the weights take [\d.]+ kB, but there is room for [\d.]+ kB CPU"):
        load(folder, device="auto")
    assert run_program(["generate", str(folder), "Hi", "--device", "auto"]) == 2
    assert "--quantize 4bit" in capsys.readouterr().err
    room(monkeypatch, {"cpu": 3 * size})
    assert load(folder, device="auto")[0].device.type == "cpu"


def test_a_plan_wants_one_device(folder, monkeypatch):
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    room(monkeypatch, {0: size // 2, "cpu": size})
    with pytest.raises(ResourceError, match="on one device"):
        load(folder, {"repeat": "1:2"}, device="auto")


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_bits_need_their_package_and_its_extra(folder, quantize):
    if importlib.util.find_spec("bitsandbytes"):
        plain, text = load(folder)[0], generate(folder, "the layers", quantize=quantize, greedy=True, max_new_tokens=4)
        assert text.engine == "transformers"
        assert load(folder, quantize=quantize)[0].get_memory_footprint() < plain.get_memory_footprint()
    else:
        with pytest.raises(MissingDependencyError, match=r"pip install 'deepen\[quantize\]'"):
            generate(folder, "the layers", quantize=quantize)


def test_other_formats_are_not_those_of_transformers(folder):
    with pytest.raises(OptionError, match="4bit or 8bit"):
        load(folder, quantize="2bit")
    with pytest.raises(OptionError, match="--quantize does not apply"):
        generate(folder, "Hi", engine="transformers", quantize="Q8_0")
    with pytest.raises(OptionError):
        generate(folder, "Hi", engine="llamacpp", quantize="4bit")
    with pytest.raises(OptionError, match="layer plan"):
        generate(folder, "Hi", quantize="4bit", repeat="1:2")
