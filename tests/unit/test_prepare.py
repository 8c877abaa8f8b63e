"""Which engine runs a model, in what memory, on which file."""

import contextlib
import json
import shutil

import pytest

from deepen import host, prepare
from deepen.checkpoint.gguf import open_gguf
from deepen.engine.libllama import window_log_likelihoods
from deepen.errors import CheckpointError, OptionError, ResourceError
from deepen.export import export
from deepen.output import cache_folder
from deepen.prepare import Memory, open_engine, prepare_gguf
from exportable import regex_style, write_byte_level, write_checkpoint

GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "seed": None, "stop": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=4)


@pytest.fixture(scope="module")
def gguf(folder):
    return export(folder, folder.parent / "tiny.gguf", quantize="F32")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def free(monkeypatch):
    """Pretend that so many bytes of memory are free; the machine's own figure cannot be changed."""

    def pretend(number):
        monkeypatch.setattr(prepare, "host_memory", lambda: host.Memory(number, number))

    return pretend


def answer(engine, prompt="the quick brown"):
    text = "".join(chunk.text for chunk in engine.stream(prompt, **GREEDY))
    return text.rstrip("\ufffd")  # llama.cpp gives the beginning of a character that never ended


def chosen(capsys, model, **options):
    with contextlib.closing(open_engine(model, **options)) as opened:
        return opened.name, capsys.readouterr().err.partition("\n")[0]


def test_auto_chooses_and_says_why_in_one_line(folder, gguf, capsys, tmp_path):
    assert chosen(capsys, gguf) == ("llamacpp", "Engine: llamacpp (a GGUF file)")
    assert chosen(capsys, folder) == ("llamacpp", "Engine: llamacpp (a checkpoint on the CPU)")
    assert chosen(capsys, folder, dtype="float32") == ("transformers", "Engine: transformers (--dtype)")
    plan = {"repeat": "1:3"}
    assert chosen(capsys, folder, plan=plan) == ("transformers", "Engine: transformers (a layer plan over shared weights)")
    assert chosen(capsys, folder, engine="transformers") == ("transformers", "Engine: transformers (asked for)")
    strange = shutil.copytree(folder, tmp_path / "strange")
    write_byte_level(strange, regex_style(r"\p{L}+"))
    name, line = chosen(capsys, strange)
    assert name == "transformers"
    assert line.startswith("Engine: transformers (a checkpoint that is not exported: the tokenizer splits text by a rule")


def test_a_checkpoint_is_exported_once_and_again_when_it_changes(folder, tmp_path, capsys):
    model = shutil.copytree(folder, tmp_path / "model")
    with contextlib.closing(open_engine(model)) as opened:
        first = answer(opened)
    said = capsys.readouterr().err
    assert f"exported once, into the cache: {cache_folder()}/model-Q8_0-" in said
    with contextlib.closing(open_engine(model)) as opened:
        assert answer(opened) == first
    assert "exported" not in capsys.readouterr().err
    with contextlib.closing(open_engine(model, quantize="f16")):
        assert "model-F16-" in capsys.readouterr().err
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    with contextlib.closing(open_engine(model)) as opened:
        assert opened.context == 128
    assert "exported once" in capsys.readouterr().err


def test_a_plan_runs_in_llama_cpp_as_it_does_in_transformers(folder, gguf, capsys):
    plan = {"repeat": "1:3", "identity_init": False}
    with contextlib.closing(open_engine(folder, plan=plan, dtype="float32")) as virtual:
        wanted = answer(virtual)
    with contextlib.closing(open_engine(gguf, plan=plan)) as written:
        assert answer(written) == wanted
    said = capsys.readouterr().err
    assert "The deepened GGUF is made once, in the cache, by byte copies: " in said
    (made,) = cache_folder().glob("*.gguf")
    assert open_gguf(made).get("llama.block_count") == 6
    assert made.stat().st_size > gguf.stat().st_size
    with contextlib.closing(open_engine(gguf, plan={"layers": "0:3,1:4"})) as written:
        assert answer(written) == wanted  # the same layers by another name
    assert "byte copies" not in capsys.readouterr().err
    with contextlib.closing(open_engine(folder, engine="llamacpp", quantize="F32", plan=plan)) as written:
        assert answer(written) == wanted


def test_identity_layers_change_nothing_in_llama_cpp(gguf):
    deep, _ = prepare_gguf(gguf, plan={"repeat": "0:4", "identity_init": True}, quantize=None, context=None)
    window = [[0, *range(200, 240)]]
    assert window_log_likelihoods(deep, window) == window_log_likelihoods(gguf, window)


def test_the_memory_is_planned_before_anything_is_loaded(gguf, capsys, free):
    tokens = 256
    cache = 4 * 2 * (16 + 16) * 2 * tokens  # layers, key and value heads, their sizes, bytes
    free(10**9)
    assert prepare_gguf(gguf, plan=None, quantize=None, context=None) == (gguf, tokens)
    weights = sum(tensor.nbytes for tensor in open_gguf(gguf).tensors.values())
    assert capsys.readouterr().err == f"Memory: {Memory(weights, cache, tokens, 10**9)}\n"
    free(weights + cache + (256 << 20) - 1)
    with pytest.raises(ResourceError, match=r"does not fit into memory: .* weights \+ .* cache for 256 tokens .* free"):
        prepare_gguf(gguf, plan=None, quantize=None, context=None)


def test_a_context_that_does_not_fit_is_shortened_unless_asked_for(folder, tmp_path, capsys, free):
    long = write_checkpoint(tmp_path / "long", num_hidden_layers=4, max_position_embeddings=16384)
    gguf = export(long, tmp_path / "long.gguf")
    per_token, weights = 4 * 2 * 32 * 2, sum(tensor.nbytes for tensor in open_gguf(gguf).tensors.values())
    free(weights + per_token * 3000 + (256 << 20))
    capsys.readouterr()
    assert prepare_gguf(gguf, plan=None, quantize=None, context=None) == (gguf, 2048)
    assert "Context: 2048 tokens, since the memory does not hold more" in capsys.readouterr().err
    with pytest.raises(ResourceError, match="cache for 8192 tokens"):
        prepare_gguf(gguf, plan=None, quantize=None, context=8192)
    with pytest.raises(ResourceError, match="cache for 4096 tokens"):
        prepare_gguf(gguf, plan=None, quantize=None, context=1024, parallel=4)


def test_a_checkpoint_steps_down_to_four_bits(folder, free, capsys):
    free(1000)
    assert prepare._quantization(folder) == "Q4_K_M"
    assert capsys.readouterr().err == "Format: Q4_K_M, since Q8_0 does not fit into 1 kB of free memory\n"
    with pytest.raises(ResourceError):
        open_engine(folder, engine="transformers")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vllm"}, "'vllm' is not an engine"),
        ({"dtype": "float16"}, "--dtype does not apply to llama.cpp"),
        ({"device": "cpu"}, "--device does not apply to llama.cpp"),
        ({"quantize": "Q4_K_M"}, "--quantize does not apply to a GGUF"),
        ({"engine": "transformers", "context": 64}, "--context does not apply to the engine transformers"),
        ({"engine": "http://127.0.0.1:9", "plan": {"repeat": "1:2"}}, "--repeat does not apply to a server behind a URL"),
    ],
)
def test_options_that_an_engine_does_not_have_are_refused(gguf, options, message):
    with pytest.raises(OptionError, match=message):
        open_engine(gguf, **options)


@pytest.mark.parametrize("size", [0, 3, 1000, 100_000])
def test_a_cut_gguf_is_refused(gguf, tmp_path, size):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        open_engine(path)
