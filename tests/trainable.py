"""Tiny real Llama checkpoints with a byte tokenizer, and text, for the tests of training and evaluation."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_WORDS = ("the", "a", "small", "old", "river", "house", "bird", "song", "was", "is", "and", "ran", "sang", "over", "stone")


def write_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A random two-layer Llama whose tokens are bytes: id 0 is the end of text, id b + 1 is byte b."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes | config))
    model.to(dtype).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte)
    vocabulary = {"<end>": 0} | {character: number for number, character in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    (folder / "LICENSE").write_text("Do what you like.\n")
    return folder


def write_text(file: Path, words: int, seed: int = 0) -> Path:
    """Random words: text that a tiny model can learn something about."""
    file.write_text(" ".join(random.Random(seed).choices(_WORDS, k=words)))
    return file


def _byte(character: str) -> int:
    """The byte that a character of GPT-2's byte alphabet stands for: a printable one itself, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return ord(character) if ord(character) in printable else others[ord(character) - 256]
