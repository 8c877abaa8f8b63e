"""The parts of export that need no llama.cpp: formats, the Llama graph, vocabularies, and everything it refuses."""

import json
import re
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import TokenType, quants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepen.checkpoint import open_checkpoint
from deepen.data.template import CHATML, SOLAR
from deepen.errors import CheckpointError, MissingDependencyError, OptionError, OutputError, UnsupportedModelError
from deepen.export import export
from deepen.export import rows as export_rows
from deepen.export.llama import deinterleave, interleave, list_parts, read_shape, rope_factors
from deepen.export.metadata import read_card
from deepen.export.ollama import find_turns, template_renderer
from deepen.export.quantize import QUANTIZATIONS, Policy, parse_quantization
from deepen.export.rows import encode, in_order, largest_error, read_rows, row_blocks
from deepen.export.sentencepiece import read_pieces
from deepen.export.vocabulary import read_vocabulary
from exportable import (
    LLAMA3_ROPE,
    SIZES,
    TEMPLATE,
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


@pytest.mark.parametrize("name", ["", "Q4_K_S", "int8", "F8"])
def test_other_formats_are_refused_with_the_list(name):
    with pytest.raises(OptionError, match="F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0"):
        parse_quantization(name)


KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q6_K, Kind.Q5_K, Kind.Q4_K, Kind.Q5_1, Kind.Q5_0, Kind.Q4_0]
RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((64, 512))
DISTRIBUTIONS = {
    "normal": NORMAL,
    "far tails": NORMAL**3,
    "one side": RANDOM.random((64, 512)),
    "few": NORMAL * (RANDOM.random((64, 512)) < 0.05),
    "outliers": np.where(RANDOM.random((64, 512)) < 0.004, 100, 1) * NORMAL,
    "tiny": NORMAL * 1e-6,
    "large": NORMAL * 300,
    "equal": np.full((64, 512), 0.3),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rounding_stays_within_the_stated_error(kind):
    largest = 0.0
    for name, values in DISTRIBUTIONS.items():
        rows = values.astype(np.float32)
        rows[3, :256] = 0
        decoded = quants.dequantize(np.frombuffer(encode(rows, kind, "x"), np.uint8).reshape(64, -1), kind)
        bound = largest_error(rows, kind)
        error = np.abs(decoded - rows).reshape(*bound.shape[:-1], -1)
        assert (error <= bound).all(), name
        largest = max(largest, (error / np.maximum(bound, 1e-30)).max())
    # and the statement is not loose: a K-quant has fitted steps, so its bound leaves room
    assert kind == Kind.F32 or largest > (0.3 if kind.name.endswith("_K") else 0.8)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.Q5_1], ids=lambda kind: kind.name)
def test_the_bytes_are_those_of_an_independent_quantiser(kind):
    for name in DISTRIBUTIONS.keys() - {"few"}:  # a block of zeros has a step of +0 or of -0
        rows = DISTRIBUTIONS[name].astype(np.float32)
        assert encode(rows, kind, "x") == quants.quantize(rows, kind).tobytes()


def test_without_ggml_only_its_simple_formats_are_written(monkeypatch):
    rows = NORMAL.astype(np.float32)
    with_ggml = encode(rows, Kind.Q8_0, "x")
    monkeypatch.setattr(export_rows, "find_spec", lambda name: None)
    export_rows.ggml_quantiser.cache_clear()
    try:
        assert encode(rows, Kind.Q8_0, "x") == with_ggml
        with pytest.raises(MissingDependencyError, match=r"Q4_K needs .* xllamacpp[^$]*deepen\[run\]"):
            encode(rows, Kind.Q4_K, "x")
    finally:
        export_rows.ggml_quantiser.cache_clear()


def types_of(name, layers, *, grouped=False, tied=False, hidden=4096, inner=11008):
    policy = Policy(QUANTIZATIONS[name], layers, tied, grouped)
    tensors = {"token_embd": (32000, hidden), "output_norm": (hidden,)} | ({} if tied else {"output": (32000, hidden)})
    for layer in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            tensors[f"blk.{layer}.{part}"] = (hidden, hidden)
        tensors[f"blk.{layer}.ffn_down"] = (hidden, inner)
        tensors[f"blk.{layer}.attn_norm"] = tensors[f"blk.{layer}.ffn_norm"] = (hidden,)
    return {part: policy.type(f"{part}.weight", shape).name for part, shape in tensors.items()}


@pytest.mark.parametrize(
    ("name", "layers", "grouped", "counts"),
    [  # as llama.cpp counts them when it loads files that its own quantiser made
        ("Q4_K_M", 32, False, {"F32": 65, "Q4_K": 193, "Q6_K": 33}),  # Llama-2-7B
        ("Q5_K_M", 32, True, {"F32": 65, "Q5_K": 193, "Q6_K": 33}),  # Mistral-7B
        ("Q4_K_M", 80, True, {"F32": 161, "Q4_K": 441, "Q5_K": 40, "Q6_K": 81}),  # Llama-2-70B
        ("Q4_K_M", 48, True, {"F32": 97, "Q4_K": 289, "Q6_K": 49}),  # SOLAR-10.7B
        ("Q4_0", 32, False, {"F32": 65, "Q4_0": 225, "Q6_K": 1}),
        ("Q6_K", 32, False, {"F32": 65, "Q6_K": 226}),
        ("Q8_0", 32, False, {"F32": 65, "Q8_0": 226}),
    ],
)
def test_the_mixture_is_that_of_published_files(name, layers, grouped, counts):
    assert Counter(types_of(name, layers, grouped=grouped).values()) == counts


def test_which_layers_get_more_bits():
    types = types_of("Q4_K_M", 32)
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for part in ("attn_v", "ffn_down"):
        assert [layer for layer in range(32) if types[f"blk.{layer}.{part}"] == "Q6_K"] == more


def test_rows_that_no_large_block_divides_get_the_next_format():
    types = types_of("Q4_K_M", 30, tied=True, hidden=576, inner=1536)  # SmolLM2-135M
    assert types["token_embd"] == "Q8_0"
    assert types["blk.5.attn_v"] == "Q8_0"
    assert (types["blk.4.attn_q"], types["blk.3.ffn_down"], types["blk.5.ffn_down"]) == ("Q5_0", "Q4_K", "Q6_K")
    odd = types_of("Q4_K_M", 4, hidden=80, inner=100)
    assert (odd["blk.1.attn_q"], odd["output"], odd["blk.1.ffn_down"]) == ("F16", "F16", "F16")


def test_jobs_come_back_in_order_and_few_are_held():
    started = []

    def work(job):
        started.append(job)
        time.sleep(0.001 * (job % 3))
        return job * job

    for job, result in in_order(work, range(60)):
        assert result == job * job
        assert len(started) - job <= 35
    assert sorted(started) == list(range(60))


def test_an_error_in_a_job_ends_the_others():
    def work(job):
        if job == 3:
            raise CheckpointError("broken")
        return job

    seen = []
    with pytest.raises(CheckpointError):
        seen += [job for job, _ in in_order(work, range(10**9))]


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


@pytest.mark.parametrize(("rows", "columns", "multiple"), [(1, 7, 1), (4096, 4096, 128), (128, 1 << 22, 64), (5, 1 << 20, 1)])
def test_row_blocks_cover_all_rows_in_whole_heads(rows, columns, multiple):
    blocks = list(row_blocks(rows, columns, multiple))
    assert [row for begin, end in blocks for row in range(begin, end)] == list(range(rows))
    assert all(begin % multiple == 0 for begin, _ in blocks)
    assert all((end - begin) * columns <= max(1 << 20, multiple * columns) for begin, end in blocks)


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


# Ollama


SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}[INST] {% if loop.index0 == 1 and "
    "messages[0].role == 'system' %}<<SYS>>{{ messages[0].content }}<</SYS>> {% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
BRACES = TEMPLATE.replace("<|{{ message['role'] }}|>", "{{ '{{' }}{{ message['role'] }}}}")


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of it, in the few words that are used: if, not, eq, else, range, end, fields, literals."""
    parts = re.split(r"({{ .*? }})", template)
    system = any(message["role"] == "system" for message in messages)

    def run(position, message, live):
        text = ""
        while position < len(parts):
            part, position = parts[position], position + 1
            action = re.fullmatch(r"{{ (.*) }}", part)
            match action[1].split() if action else None:
                case None:
                    text += part if live else ""
                case ['"{{"']:
                    text += "{{" if live else ""
                case [".Content"]:
                    text += message["content"] if live else ""
                case ["range", ".Messages"]:
                    for each in messages:
                        inner, end = run(position, each, live)
                        text += inner
                    position = end
                case ["if", *condition]:
                    taken = False
                    while True:
                        value = not system if condition == ["not", ".System"] else f'"{message["role"]}"' == condition[-1]
                        inner, position = run(position, message, live and value and not taken)
                        text, taken = text + inner, taken or value
                        condition = parts[position - 1][3:-3].split()[2:]
                        if not condition:
                            break
                case ["end"] | ["else", *_]:
                    return text, position
        return text, position

    return run(0, None, True)[0]


CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Hi")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e {{ .Content }}")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


@pytest.mark.parametrize("template", [TEMPLATE, SOLAR, CHATML, SMOL, BRACES])
def test_ollama_renders_what_the_chat_template_renders(checkpoint, template):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = template
    turns = find_turns(template_renderer(tokenizer, adds_bos=True), checkpoint)
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go(turns.go_template(), messages) == turns.render(messages) == wanted


@pytest.mark.parametrize("template", [LLAMA2, "{{ messages[-1].content }}", "{{ raise_exception('no') }}"])
def test_a_template_that_ollama_cannot_say_is_refused_before_anything_is_written(checkpoint, tmp_path, template):
    (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModelError, match="Ollama"):
        export(checkpoint, tmp_path / "m.gguf", ollama=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_modelfile_lies_beside_the_gguf(checkpoint, tmp_path):
    (checkpoint / "LICENSE").write_text("Do good.\n")
    change(checkpoint, "generation_config.json", eos_token_id=[1, 3])
    export(checkpoint, tmp_path / "m.gguf", ollama=True)
    text = (tmp_path / "m.Modelfile").read_text()
    assert text.startswith('FROM ./m.gguf\nTEMPLATE """{{ range .Messages }}')
    assert 'PARAMETER stop "</s>"\nPARAMETER stop "<|assistant|>"\nPARAMETER num_ctx 256\nLICENSE """Do good."""\n' in text
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(OutputError, match=r"m\.Modelfile: the output exists already"):
        export(checkpoint, tmp_path / "m.gguf", ollama=True)


@pytest.mark.parametrize(
    "named", ["PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", None]
)
def test_the_check_takes_the_tokenizer_that_transformers_takes(named, checkpoint):
    from deepen.export.check import _load_tokenizer

    file = checkpoint / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": named}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value}))
    wanted, (found, reason) = AutoTokenizer.from_pretrained(checkpoint), _load_tokenizer(checkpoint)
    assert (type(found), reason) == (type(wanted), "")
    for text in ("Größe und naïve café — 你好 🙂", "  def main():\n\treturn 2024", "<s>a</s> b"):
        assert found(text)["input_ids"] == wanted(text)["input_ids"]
    assert found.chat_template == wanted.chat_template


def test_the_check_of_a_llama_needs_no_torch(checkpoint):
    code = "import sys; from deepen.export.check import _load_tokenizer as load; from pathlib import Path;"
    code += f" assert load(Path({str(checkpoint)!r}))[0] is not None; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
