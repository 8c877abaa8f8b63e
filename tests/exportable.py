"""Tiny real Llama checkpoints with working tokenizers, for the tests of export."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_CORPUS = [
    "The quick brown fox jumps over the lazy dog, 1234 times.",
    "def main(): return 2024",
    "Größe und naïve café — 你好 🙂",
] * 3


def gpt2_style() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def smollm_style() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2_style()])


def regex_style(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def write_byte_level(folder: Path, style: Any, *, ignore_merges: bool = False, add_bos: bool = True) -> None:
    """Train a byte-level BPE and write it as transformers would find it on the Hub."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = style
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"], initial_alphabet=gpt2_style().alphabet()
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer_config(folder, bos_token="<s>", eos_token="</s>")


def write_tokenizer_config(folder: Path, **settings: Any) -> None:
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def write_sentencepiece_json(folder: Path, texts: list[str], scores: list[float]) -> None:
    """The tokenizer.json of SentencePiece pieces: a merge for every way to make a piece of two, best score first."""
    ids = {text: index for index, text in enumerate(texts)}
    merges = [
        (-scores[index], ids[text[:cut]], ids[text[cut:]], (text[:cut], text[cut:]))
        for text, index in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    model = models.BPE(
        vocab=ids, merges=[merge[3] for merge in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model(
    folder: Path, *, family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> None:
    """Write config and weights: wide enough that every layer and every norm matters."""
    config_class, model_class = (LlamaConfig, LlamaForCausalLM) if family == "llama" else (MistralConfig, MistralForCausalLM)
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SIZES, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if "norm" in name else 0.0))
    model.to(dtype).save_pretrained(folder)


def write_checkpoint(folder: Path, style: Any = None, *, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A whole checkpoint with a byte-level tokenizer and a chat template."""
    folder.mkdir()
    write_model(folder, **changes)
    write_byte_level(folder, style or smollm_style())
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder
