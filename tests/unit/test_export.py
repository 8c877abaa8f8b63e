"""The parts of export that need no llama.cpp: formats, the Llama graph, vocabularies, and everything it refuses."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import TokenType, quants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepen.checkpoint import open_checkpoint
from deepen.errors import CheckpointError, OptionError, OutputError, UnsupportedModelError
from deepen.export import export
from deepen.export.llama import deinterleave, interleave, list_parts, read_shape, rope_factors
from deepen.export.metadata import read_card
from deepen.export.quantize import QUANTIZATIONS, encode, largest_error, parse_quantization, read_rows, row_blocks
from deepen.export.sentencepiece import read_pieces
from deepen.export.vocabulary import read_vocabulary
from exportable import (
    LLAMA3_ROPE,
    SIZES,
    gpt2_style,
    regex_style,
    write_byte_level,
    write_checkpoint,
    write_tokenizer_config,
)


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "model")


def change(folder: Path, name: str, **settings: object) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in {**content, **settings}.items() if value is not ...}))


def vocabulary_of(folder, size=SIZES["vocab_size"], config=SIZES):
    return read_vocabulary(folder, size, config)


# Formats


def test_format_names_in_any_case():
    assert parse_quantization("q8_0") is parse_quantization("Q8_0")


@pytest.mark.parametrize("name", ["", "Q4_K_M", "int8", "F8"])
def test_other_formats_are_refused_with_the_list(name):
    with pytest.raises(OptionError, match="F32, F16, BF16, Q8_0"):
        parse_quantization(name)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_rounding_stays_within_the_stated_error(name):
    kind = QUANTIZATIONS[name].type
    rows = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32) * np.float32(
        [[1e-6], [1e-3], [1.0], [300.0]] * 16
    )
    rows[3, :32] = 0
    decoded = quants.dequantize(np.frombuffer(encode(rows, kind, "x"), np.uint8).reshape(64, -1), kind)
    error, bound = np.abs(decoded - rows), largest_error(rows, kind)
    assert (error <= bound).all()
    if name != "F32":
        assert (error > 0.8 * bound).any()  # and the statement is not loose


def test_bfloat16_is_read_exactly(tmp_path):
    weights = torch.randn(7, 5).bfloat16()
    save_file({"x": weights}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tensor = open_checkpoint(tmp_path).tensors["x"]
    assert (read_rows(tensor, 2, 6) == weights[2:6].float().numpy()).all()


@pytest.mark.parametrize(
    ("value", "kind", "error"),
    [(70000.0, Kind.F16, OptionError), (np.inf, Kind.F32, CheckpointError), (np.nan, Kind.Q8_0, CheckpointError)],
)
def test_values_that_do_not_fit_are_refused(value, kind, error):
    with pytest.raises(error, match="'x'"):
        encode(np.full((1, 32), value, np.float32), kind, "x")


@pytest.mark.parametrize(("rows", "columns", "multiple"), [(1, 7, 1), (4096, 4096, 128), (128, 1 << 22, 64), (5, 1 << 21, 1)])
def test_row_blocks_cover_all_rows_in_whole_heads(rows, columns, multiple):
    blocks = list(row_blocks(rows, columns, multiple))
    assert [row for begin, end in blocks for row in range(begin, end)] == list(range(rows))
    assert all(begin % multiple == 0 for begin, _ in blocks)
    assert all((end - begin) * columns <= max(1 << 21, multiple * columns) for begin, end in blocks)


# The graph


def test_rotary_rows_become_neighbours():
    rows = np.arange(16, dtype=np.float32)[:, np.newaxis]  # two heads of 8
    assert interleave(rows, 8)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert (deinterleave(interleave(rows, 8), 8) == rows).all()


def test_llama3_rope_factors_are_those_of_transformers(checkpoint):
    change(checkpoint, "config.json", rope_parameters=LLAMA3_ROPE)
    opened = open_checkpoint(checkpoint)
    config = LlamaConfig(**{**SIZES, "rope_parameters": LLAMA3_ROPE})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / rope_factors(opened, read_shape(opened)), scaled.numpy(), rtol=1e-5)


def test_old_configs_say_the_same(checkpoint):
    before = read_shape(open_checkpoint(checkpoint))
    change(
        checkpoint,
        "config.json",
        rope_parameters=...,
        rope_theta=5000.0,
        rope_scaling={"type": "linear", "factor": 2.0},
        head_dim=...,
    )
    after = read_shape(open_checkpoint(checkpoint))
    assert (after.rope_theta, after.rope["type"], after.head) == (5000.0, "linear", before.head)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "qwen2"}, "'qwen2' is not exported here"),
        ({"model_type": ...}, "None is not exported here"),
        ({"model_type": "mistral", "sliding_window": 128}, "window of 128 tokens in a context of 256"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope type 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, "only a part of each head"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "mscale": 0.7}},
            "its own mscale",
        ),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(checkpoint, tmp_path, settings, message):
    change(checkpoint, "config.json", **settings)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        export(checkpoint, tmp_path / "m.gguf")
    assert caught.value.next
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 4}, "'model.layers.3.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 2}, "9 tensors have no place .* first 'model.layers.2"),
        ({"vocab_size": 500}, r"'model.embed_tokens.weight' has the shape \(512, 64\), but the config says \(500, 64\)"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number, not '64'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"max_position_embeddings": ...}, "max_position_embeddings must be"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a positive number"),
        ({"rope_parameters": {**LLAMA3_ROPE, "factor": -1}}, "factor must be"),
        ({"rope_parameters": [1]}, "not an object"),
    ],
)
def test_configs_that_contradict_the_weights_are_refused(checkpoint, tmp_path, settings, message):
    change(checkpoint, "config.json", **settings)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_window_that_never_binds_is_no_obstacle(checkpoint):
    change(checkpoint, "config.json", model_type="mistral", sliding_window=256)
    assert read_shape(open_checkpoint(checkpoint)).context == 256


def test_recomputed_and_ignored_tensors_are_left_out(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    change(checkpoint, "config.json", tie_word_embeddings=True)
    opened = open_checkpoint(checkpoint)
    assert len(list_parts(opened, read_shape(opened))) == 29


def test_other_number_types_are_refused(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"'model\.norm\.weight' is stored as F8_E4M3"):
        export(checkpoint, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_file_is_kept(checkpoint, tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export(checkpoint, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


# Byte-level vocabularies


def test_byte_level_vocabulary(checkpoint):
    vocabulary = vocabulary_of(checkpoint)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "smollm")
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, False)
    assert vocabulary.special == {"bos": 0, "eos": 1}
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert (kinds["<s>"], kinds["<tool>"], kinds["a"], kinds["[PAD511]"]) == (
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
        TokenType.NORMAL,
        TokenType.UNUSED,
    )
    used = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert [used.token_to_id(token) for token in vocabulary.tokens[: used.get_vocab_size()]] == list(
        range(used.get_vocab_size())
    )
    assert vocabulary.merges[0].count(" ") == 1


def test_merges_as_lines_are_read_as_pairs(checkpoint):
    before = vocabulary_of(checkpoint)
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary_of(checkpoint) == before


@pytest.mark.parametrize(
    "style",
    [
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), gpt2_style()]),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), gpt2_style()]),
        regex_style(r"\p{L}+|\p{N}{1,2}"),
    ],
)
def test_an_unknown_splitting_rule_is_refused(checkpoint, tmp_path, style):
    write_byte_level(checkpoint, style)
    with pytest.raises(UnsupportedModelError, match=r"splits text by a rule .*ByteLevel") as caught:
        export(checkpoint, tmp_path / "m.gguf")
    assert "convert_hf_to_gguf.py" in str(caught.value.next)


def test_normalisers_other_than_nfc_are_refused(checkpoint):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    assert vocabulary_of(checkpoint).pre == "smollm"
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="Lowercase"):
        vocabulary_of(checkpoint)


def test_more_tokens_than_rows_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match="344 tokens, but the embedding only 300 rows"):
        vocabulary_of(checkpoint, size=300)


def test_no_tokenizer_is_refused(checkpoint, tmp_path):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        export(checkpoint, tmp_path / "m.gguf")


def test_a_word_level_tokenizer_is_refused(checkpoint):
    (checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}}}))
    with pytest.raises(UnsupportedModelError, match="not of the BPE kind"):
        vocabulary_of(checkpoint)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (1, {"eos": 1}),
        ([1, 3], {"eos": 1, "eot": 3}),
        ([3, 1], {"eos": 1, "eot": 3}),
        ([3], {"eos": 3}),
        ([2, 3, 1], {"eos": 1, "eot": 2, "eom": 3}),
    ],
)
def test_all_stop_tokens_are_kept(checkpoint, stops, expected):
    change(checkpoint, "generation_config.json", eos_token_id=stops)
    assert vocabulary_of(checkpoint).special == {"bos": 0, **expected}


def test_stop_tokens_that_do_not_exist_are_refused(checkpoint):
    change(checkpoint, "generation_config.json", eos_token_id=[1, 512])
    with pytest.raises(CheckpointError, match="eot token 512"):
        vocabulary_of(checkpoint)


def test_more_stop_tokens_than_a_gguf_holds_are_refused(checkpoint):
    change(checkpoint, "generation_config.json", eos_token_id=[1, 2, 3, 4])
    with pytest.raises(UnsupportedModelError, match="4 tokens end an answer"):
        vocabulary_of(checkpoint)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, (True, False)), ({"add_bos_token": False}, (False, False)), ({"add_eos_token": True}, (False, True))],
)
def test_the_tokenizer_config_decides_what_is_added(checkpoint, settings, expected):
    change(checkpoint, "tokenizer_config.json", **settings)
    vocabulary = vocabulary_of(checkpoint)
    assert (vocabulary.add_bos, vocabulary.add_eos) == expected


def test_the_template_file_wins(checkpoint):
    change(checkpoint, "tokenizer_config.json", chat_template="old")
    assert vocabulary_of(checkpoint).chat_template == (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").unlink()
    assert vocabulary_of(checkpoint).chat_template == "old"


# SentencePiece


def varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def entry(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece(*, model_type: int = 2, charsmap: bytes = b"", extra_spaces: int = 0) -> bytes:
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<0x41>", 0.0, 6),
        ("▁a", -1.0, 1),
        ("▁", -2.0, 1),
        ("a", -3.0, 1),
    ]
    message = b"".join(
        entry(1, entry(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + entry(3, kind))
        for text, score, kind in pieces
    )
    trainer = entry(2, entry(3, model_type) + entry(35, 1))
    return message + trainer + entry(3, entry(1, b"identity") + entry(2, charsmap) + entry(3, 1) + entry(4, extra_spaces))


@pytest.fixture
def spoken(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece())
    write_tokenizer_config(
        tmp_path,
        bos_token={"content": "<s>"},
        eos_token="</s>",
        added_tokens_decoder={"1": {"content": "<s>", "special": True}, "8": {"content": "<|end|>", "special": True}},
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 7, "<|end|>": 8}))
    return tmp_path


def test_sentencepiece_vocabulary(spoken):
    vocabulary = read_vocabulary(spoken, 11, {})
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_space_prefix) == ("llama", "default", True)
    assert vocabulary.tokens == ("<unk>", "<s>", "</s>", "<0x41>", "▁a", "▁", "a", "<tool>", "<|end|>", "[PAD9]", "[PAD10]")
    assert vocabulary.types == (2, 3, 3, 6, 1, 1, 1, 4, 3, 5, 5)
    assert vocabulary.scores == (0, 0, 0, 0, -1, -2, -3, -1000, -1000, -1000, -1000)
    assert (vocabulary.special, vocabulary.add_bos, vocabulary.add_eos) == ({"bos": 1, "eos": 2}, True, False)


@pytest.mark.parametrize("change_to", [{"model_type": 1}, {"charsmap": b"x"}, {"extra_spaces": 1}])
def test_other_sentencepiece_kinds_are_refused(tmp_path, change_to):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(**change_to))
    with pytest.raises(UnsupportedModelError, match="SentencePiece model"):
        read_pieces(tmp_path / "tokenizer.model")


def test_a_cut_sentencepiece_file_is_refused(tmp_path):
    whole = sentencepiece()
    for length in range(len(whole)):
        (tmp_path / "tokenizer.model").write_bytes(whole[:length])
        with pytest.raises((CheckpointError, UnsupportedModelError)):
            read_pieces(tmp_path / "tokenizer.model")


def test_a_tiktoken_file_is_no_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        read_pieces(tmp_path / "tokenizer.model")


# The model card


def test_front_matter(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\n---\n# Model\n---\n")
    assert read_card(tmp_path) == {"license": "apache-2.0", "language": ["en", "de"]}


@pytest.mark.parametrize("text", ["# Model\n", "---\nlicense: mit\n", ""])
def test_no_front_matter(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path) == {}


@pytest.mark.parametrize("matter", ["license: [", "- a\n- b"])
def test_broken_front_matter_is_refused(tmp_path, matter):
    (tmp_path / "README.md").write_text(f"---\n{matter}\n---\n")
    with pytest.raises(CheckpointError, match="front matter"):
        read_card(tmp_path)
