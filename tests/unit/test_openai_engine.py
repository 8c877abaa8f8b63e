"""The engine behind a URL, against llama.cpp's own server, as a stranger's: only URL, model name and key are known."""

import contextlib
import json
from dataclasses import replace

import pytest

from deepen.engine.llamacpp import LlamacppEngine
from deepen.engine.openai import OpenAIEngine
from deepen.errors import DataError, NetworkError, OptionError, UnsupportedModelError
from tinygguf import write_tiny_gguf

GREEDY = {"max_new_tokens": 24, "temperature": 0.0, "seed": None, "stop": ()}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def llama(gguf):
    with contextlib.closing(LlamacppEngine(gguf)) as opened:
        yield opened


@pytest.fixture
def remote(llama, monkeypatch):
    monkeypatch.setenv("DEEPEN_API_KEY", llama._key)
    return OpenAIEngine(llama._address.geturl(), "tiny")


def collect(engine, prompt, **options):
    chunks = list(engine.stream(prompt, **(GREEDY | options)))
    return "".join(chunk.text for chunk in chunks), chunks


@pytest.mark.parametrize("prompt", ["the other", [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]])
def test_it_answers_as_the_engine_behind_it(llama, remote, prompt):
    text, chunks = collect(remote, prompt)
    wanted, reference = collect(llama, prompt)
    assert text == wanted
    assert len(text) > 12
    assert len(chunks) > 3
    assert chunks[-1] == replace(reference[-1], text="")


def test_seeds_stops_and_schemas_reach_the_server(remote):
    sampled = [collect(remote, "one", seed=seed, temperature=1.0)[0] for seed in (3, 3, 4)]
    assert sampled[0] == sampled[1] != sampled[2]
    whole, _ = collect(remote, "one two three")
    text, chunks = collect(remote, "one two three", stop=[whole[6:8]])
    assert text == whole[: whole.index(whole[6:8])]
    assert chunks[-1].finish_reason == "stop"
    message = [{"role": "user", "content": "a city"}]
    assert json.loads(collect(remote, message, json_schema=CITY, max_new_tokens=100)[0])["city"] in {"Rome", "Bonn"}


def test_what_a_server_does_not_tell_is_refused(remote):
    for forbidden in (lambda: remote.tokenize("x"), lambda: remote.render([])):
        with pytest.raises(UnsupportedModelError):
            forbidden()


def test_bad_urls_models_keys_and_prompts_are_refused(llama, remote, monkeypatch):
    with pytest.raises(OptionError, match=r"no model 'other'; it has tiny"):
        OpenAIEngine(llama._address.geturl(), "other")
    with pytest.raises(DataError, match="exceeds the available context size"):
        collect(remote, "word " * 600)
    monkeypatch.setenv("DEEPEN_API_KEY", "wrong")
    with pytest.raises(OptionError, match=r"wants a key[^$]*DEEPEN_API_KEY"):
        collect(OpenAIEngine(llama._address.geturl(), "tiny"), "x")
    for url in ("http://127.0.0.1:9", "ftp://x", "http://"):
        with pytest.raises(OptionError, match="--engine"):
            OpenAIEngine(url, "m")


def test_an_answer_that_breaks_off_is_an_error(gguf, monkeypatch):
    with contextlib.closing(LlamacppEngine(gguf)) as opened:
        monkeypatch.setenv("DEEPEN_API_KEY", opened._key)
        remote = OpenAIEngine(opened._address.geturl(), "tiny")
        stream = remote.stream("one", **(GREEDY | {"max_new_tokens": 400}))
        next(stream)
        opened._child.process.kill()
        with pytest.raises(NetworkError, match="broke"):
            list(stream)
