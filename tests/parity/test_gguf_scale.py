# ruff: noqa: RUF001  the texts are strange on purpose
"""A GGUF deepened, decoded and run, against independent readers: the gguf package, transformers and llama.cpp."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from deepen.checkpoint.gguf import open_gguf
from deepen.checkpoint.manifest import read_manifest
from deepen.scale.decode import decode_gguf
from deepen.scale.gguf import manifest_path, scale_gguf

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "text" / "wikitext2" / "valid.txt"
PARIS = "What is the capital of France?"

TEXTS = [
    "Hello, world!",
    " leading space",
    "trailing space ",
    "  two  spaces  ",
    "\ttabs\t\tand\nnewlines\n\n\nthree",
    "",
    " ",
    "\n",
    "12345",
    "3.14159 and 2,718,281",
    "year 2024, 1st of 12",
    "a1b2c3",
    "٣٤٥ ४५६ Ⅷ ½ ²",
    "0x7fff 1e-9",
    "don't can't I'll we've he'd",
    "DON'T SHOUT, I'M HERE",
    "naïve café résumé",
    "cafe\u0301 combining",
    "日本語のテキスト。",
    "中文字符，标点。",
    "한국어 문장",
    "Привет, мир!",
    "Ελληνικά",
    "שלום עולם",
    "مرحبا بالعالم",
    "हिन्दी वाक्य",
    "🙂🙃 emoji 👩‍👩‍👧‍👦 family",
    "zero\u200bwidth \ufeff bom",
    "non\u00a0breaking\u3000wide",
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < 10; ++i) { a[i] += i; }",
    "SELECT * FROM t WHERE a >= 10;",
    '<html><body class="x">&amp;</body></html>',
    "https://example.org/path?q=1&r=%20#top",
    "user@example.org",
    "C:\\Users\\x\\file.txt",
    '{"key": [1, 2, {"nested": null}]}',
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "$\\int_0^1 x^2 dx = \\frac{1}{3}$",
    "!!!???...---___",
    "«guillemets» “quotes” ‘single’ – dash — long",
    "ALLCAPSWORDWITHOUTSPACES",
    "camelCaseAndsnake_case",
    "antidisestablishmentarianism",
    "line one\r\nline two\r\n",
    "a\u2028b\u2029c",
    "    four spaces\n        eight",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>after",
    "text <|im_end|> inside <repo_name>x",
    "<|im_start|",
    "x" * 300,
    "\x00\x01\x7f control",
    "ﬁ ligature ﬂ",
    "İstanbul ı",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
]

CHILD = """
import json, sys, urllib.request
import xllamacpp
job = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.verbosity, params.warmup = job["path"], 512, 0, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
result = {"tokens": [], "answers": [], "logprobs": []}
def post(path, body):
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request))
for text in job.get("texts", []):
    result["tokens"].append(post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])
for question in job.get("questions", []):
    message = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 12}
    result["answers"].append(server.handle_chat_completions(message)["choices"][0]["message"]["content"])
for prompt in job.get("prompts", []):
    answer = post("/completion", {"prompt": prompt, "n_predict": 1, "n_probs": 20, "temperature": 0, "ignore_eos": True})
    found = answer.get("completion_probabilities")  # left out where the token is a part of a character
    best = found[0]["top_logprobs"] if found else []
    result["logprobs"].append({entry["id"]: entry["logprob"] for entry in best})
print("RESULT " + json.dumps(result))
"""


def llama_cpp(path: Path, **job: Any) -> dict[str, Any]:
    """Run llama.cpp in a process of its own, where a failed assertion of its cannot end the tests."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps({"path": str(path), **job}), capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def scaled(source: Path, out: Path, **plan: Any) -> Path:
    return scale_gguf(open_gguf(source), out, plan, {"model": str(source), "options": plan}, time.monotonic(), overwrite=False)


@pytest.fixture(scope="module")
def deepened(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaled(smollm2, tmp_path_factory.mktemp("gguf") / "deep.gguf", drop=8)


@pytest.fixture(scope="module")
def decoded(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoded")
    decode_gguf(smollm2, folder)
    return folder


@pytest.mark.slow
def test_the_gguf_package_reads_the_planned_bytes(smollm2: Path, deepened: Path) -> None:
    source, result = gguf.GGUFReader(smollm2), gguf.GGUFReader(deepened)
    plan = [*range(22), *range(8, 30)]
    before = {tensor.name: tensor for tensor in source.tensors}
    assert len(result.tensors) == 2 + 9 * 44
    for tensor in result.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name)
        origin = before[f"blk.{plan[int(match[1])]}.{match[2]}" if match else tensor.name]
        assert tensor.tensor_type == origin.tensor_type
        assert list(tensor.shape) == list(origin.shape)
        assert np.array_equal(tensor.data, origin.data)
    assert result.fields["llama.block_count"].contents() == 44
    for key in source.fields.keys() - {"llama.block_count", "GGUF.tensor_count"}:
        assert result.fields[key].contents() == source.fields[key].contents()


def test_the_manifest_lies_beside_and_names_every_tensor(deepened: Path) -> None:
    content = read_manifest(manifest_path(deepened))
    assert manifest_path(deepened).name == "deep.gguf.deepen.json"
    assert content["plan"] == {"source_layers": 30, "layers": "0:22,8:30"}
    records = {record["name"]: record for record in content["tensors"]}
    assert len(records) == 2 + 9 * 44
    assert records["blk.22.attn_q.weight"]["source"] == "blk.8.attn_q.weight"
    assert records["blk.22.attn_q.weight"]["sha256"] == records["blk.8.attn_q.weight"]["sha256"]


@pytest.mark.slow
def test_llama_cpp_runs_the_deepened_file(deepened: Path) -> None:
    answer = llama_cpp(deepened, questions=[PARIS])["answers"][0]
    assert len(answer.split()) > 2


@pytest.mark.slow
def test_identity_init_answers_as_the_base_does(smollm2: Path, tmp_path: Path) -> None:
    out = scaled(smollm2, tmp_path / "same.gguf", expand=6)
    prompts = ["The capital of France is", "def add(a, b):\n    return"]
    base, same = llama_cpp(smollm2, questions=[PARIS], prompts=prompts), llama_cpp(out, questions=[PARIS], prompts=prompts)
    assert same["answers"] == base["answers"]
    assert same["logprobs"] == base["logprobs"]


def test_the_decoded_tokenizer_cuts_text_as_llama_cpp_does(smollm2: Path, decoded: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoded)
    reference = llama_cpp(smollm2, texts=TEXTS)["tokens"]
    ours = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert [text for text, a, b in zip(TEXTS, ours, reference, strict=True) if a != b] == []
    assert tokenizer("Hi")["input_ids"][0] != tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer("  12 naïve 日本")["input_ids"]) == "  12 naïve 日本"


def test_the_decoded_chat_template_and_stop_tokens_work(decoded: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoded)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    generation = json.loads((decoded / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == "<|im_end|>"


@pytest.mark.slow
def test_decoding_agrees_with_transformers_own_loader(smollm2: Path, decoded: Path) -> None:
    ours, loading = AutoModelForCausalLM.from_pretrained(decoded, output_loading_info=True)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    assert not any(loading.values())
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    reference = theirs.state_dict()
    assert ours.state_dict().keys() == reference.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, reference[name]), name


@pytest.mark.slow
def test_perplexity_of_the_decoded_base(decoded: Path) -> None:
    if not WIKITEXT.exists():
        pytest.skip("WikiText-2 is not there")
    tokenizer, model = AutoTokenizer.from_pretrained(decoded), AutoModelForCausalLM.from_pretrained(decoded)
    with WIKITEXT.open(encoding="utf-8") as stream:
        ids = torch.tensor(tokenizer(stream.read(22_000))["input_ids"][:4096]).view(8, 512)
    scores = []
    with torch.no_grad():
        for window in ids:
            logits = model(window[None]).logits[0, :-1].log_softmax(-1)
            scores.append(logits.gather(1, window[1:, None]))
    assert math.exp(-torch.stack(scores).mean()) == pytest.approx(19.50, abs=0.05)


@pytest.mark.slow
def test_llama_cpp_and_the_decoded_model_give_the_same_probabilities(smollm2: Path, decoded: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(decoded), AutoModelForCausalLM.from_pretrained(decoded)
    prompts = [
        "The capital of France is",
        "Water boils at",
        "In 1969, the first man",
        "import numpy as",
        "Once upon a time there",
    ]
    for prompt, reference in zip(prompts, llama_cpp(smollm2, prompts=prompts)["logprobs"], strict=True):
        with torch.no_grad():
            row = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].log_softmax(-1)
        ours = row[torch.tensor([int(token) for token in reference])]
        theirs = torch.tensor(list(reference.values()))
        # llama.cpp rounds activations to 8 bits before it multiplies, so rare tokens differ; the distributions must not
        assert (ours.exp() * (ours - theirs)).sum().abs() < 0.02, prompt
        assert ours.argmax() == theirs.argmax() or (ours.max() - ours[theirs.argmax()]) < 0.05, prompt


# ── tiny models of every architecture and tokenizer that can be decoded ──────────────────────────────────────────────────────

MODELS = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False, "head_dim": 32}),
}
PLAIN_TEXTS = [text for text in TEXTS if "<|" not in text]
PRE_TOKENIZERS = ["smollm", "gpt-2", "llama-bpe", "qwen2"]


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges learned without any cutting, so that every rule of a pre-tokenizer shows in the tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        PLAIN_TEXTS * 3, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(backend.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def write_tiny(path: Path, family: str, pre: str | None) -> Any:
    """A GGUF of a tiny random model with the tokenizer `pre` (None: SentencePiece), written with the gguf package alone."""
    if pre is None:
        pieces = ["▁", *sorted({c for text in TEXTS for c in text.replace(" ", "▁") if c != "\0"})]
        words = [
            "▁the",
            "th",
            "he",
            "▁t",
            "in",
            "er",
            "▁▁",
            "▁w",
            "or",
            "ld",
            "orld",
            "▁world",
            "He",
            "ll",
            "Hell",
            "ello",
            "lo",
            "12",
            "34",
        ]
        plain = list(dict.fromkeys([*pieces, *words]))
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *plain]
        kinds = [2, 3, 3, *[6] * 256, *[1] * len(plain)]
    else:
        plain, merges = byte_level_vocabulary()
        tokens = [*plain, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        kinds = [1] * len(plain) + [3] * 3
    config_class, options = MODELS[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=5000.0, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    head = getattr(config, "head_dim", None) or 16
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(3)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pre:
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores([0.0] * 259 + [-float(len(plain) - i) for i in range(len(plain))])
    writer.add_bos_token_id(1 if pre is None else tokens.index("<|im_start|>"))
    writer.add_eos_token_id(2 if pre is None else tokens.index("<|im_end|>"))
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), 3)
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, tensor in state.items():
        stored = tensor.numpy()
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            rows, columns = stored.shape
            stored = stored.reshape(rows // head, 2, head // 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)
        stem, kind = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("family", MODELS)
def test_a_decoded_model_computes_what_was_stored(family: str, tmp_path: Path) -> None:
    original = write_tiny(tmp_path / "a.gguf", family, "smollm")
    (tmp_path / "out").mkdir()
    decode_gguf(tmp_path / "a.gguf", tmp_path / "out")
    decoded_model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    ids = torch.randint(0, 900, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(decoded_model(ids).logits, original(ids).logits)
    prompts = ["Hello, world!", "def f(x):", "12345", "camelCase", "user@example.org", "SELECT * FROM t", "naïve café", "!!!"]
    tokenizer, compared = AutoTokenizer.from_pretrained(tmp_path / "out"), 0
    for prompt, reference in zip(prompts, llama_cpp(tmp_path / "a.gguf", prompts=prompts)["logprobs"], strict=True):
        with torch.no_grad():
            row = original(tokenizer(prompt, return_tensors="pt")["input_ids"]).logits[0, -1].log_softmax(-1)
        for token, logprob in reference.items():
            assert row[int(token)].item() == pytest.approx(logprob, abs=0.005)  # keys and values are kept in float16
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, None])
def test_every_known_tokenizer_cuts_text_as_llama_cpp_does(pre: str | None, tmp_path: Path) -> None:
    write_tiny(tmp_path / "a.gguf", "llama", pre)
    (tmp_path / "out").mkdir()
    decode_gguf(tmp_path / "a.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    reference = llama_cpp(tmp_path / "a.gguf", texts=TEXTS)["tokens"]
    ours = [tokenizer(text)["input_ids"] for text in TEXTS]
    different = [(text, a, b) for text, a, b in zip(TEXTS, ours, reference, strict=True) if a != b]
    assert different == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_decoding_into_half_precision_rounds_once(dtype: str, tmp_path: Path) -> None:
    original = write_tiny(tmp_path / "a.gguf", "llama", "gpt-2")
    (tmp_path / "out").mkdir()
    decode_gguf(tmp_path / "a.gguf", tmp_path / "out", dtype=dtype)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert half.dtype == getattr(torch, dtype)
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name].to(half.dtype)), name
