"""Tokenise a text word by word, and each word once, where that gives the tokens of the whole text.

It does for two families of tokenizers. Both are recognised by their parts alone; any other tokenizer reads whole texts.

Byte-level ones split the text by a regular expression before they look for tokens. In the expressions below no alternative goes
on over a space after a character that is not white, nor over any white space after a letter or digit, and none looks back. So
one match ends at such a place, and the next begins there.

SentencePiece-like ones write a space as ▁, put one before the text, and merge pairs in all of the text. If no piece of the
vocabulary has a ▁ after another character, no merge reaches over a single space between characters that are not white; and a
word without its space gets the ▁ that the space would become.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

_MOST = 1 << 21  # characters of words that are remembered at once: with their tokens some 50 MB
_SPARSE = 64  # a text with fewer spaces than one per so many characters is not cut into words
# a word and the white space before it; it goes on over other white space than a space unless it ends with a letter or digit
_WITH_SPACE = re.compile(r"\s*\S+(?:(?<![^\W_])[^\S ]\s*\S*)*|\s+")
_SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")
_EXPRESSIONS = {  # of GPT-4 and Llama 3, Qwen 2, GPT-4o
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class Rule(NamedTuple):
    """How a text is cut into words.

    Attributes:
        cut: from a text to its words.
        gap: how many characters between two words belong to neither.
        foreign: what a text must not have in it.
    """

    cut: Callable[[str], list[str]]
    gap: int
    foreign: tuple[str, ...]


class Words(NamedTuple):
    """A text cut into words."""

    words: list[str]
    tokens: list[bytes]


def word_rule(tokenizer: Mapping[str, Any]) -> Rule | None:
    """How a tokenizer's texts can be cut into words without another result; None if that is not known.

    Args:
        tokenizer: the content of its `tokenizer.json`.
    """
    added = [token["content"] for token in tokenizer["added_tokens"]]
    reaching = any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in tokenizer["added_tokens"])
    if reaching or any(re.search(r"\S\s", content) for content in added):
        return None
    if _is_byte_level(tokenizer):
        return Rule(_WITH_SPACE.findall, 0, ())
    if len(added) <= 16 and _is_sentencepiece(tokenizer):
        # after an added token the text begins anew, with another ▁
        return Rule(_SINGLE_SPACE.split, 1, ("▁", *added))
    return None


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    normalizer, splitter = tokenizer["normalizer"], tokenizer["pre_tokenizer"]
    if normalizer not in (None, {"type": "NFC"}) or splitter is None:  # a space neither composes nor is reordered
        return False
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    splits = 0
    for step in steps:
        match step:
            case {"type": "Digits"}:
                pass
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses}:
                splits += uses
            case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}:
                if expression not in _EXPRESSIONS:
                    return False
                splits += 1
            case _:
                return False
    return splits > 0


def _is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    model, normalizer, splitter = tokenizer["model"], tokenizer["normalizer"], tokenizer["pre_tokenizer"]
    prepended = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    match normalizer, splitter:
        case {"type": "Sequence", "normalizers": steps}, None if steps == prepended:
            pass
        case None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first" | "always"}:
            pass
        case _:
            return False
    usual = {"type": "BPE", "dropout": None, "ignore_merges": False}
    if any(model.get(key, usual[key]) != usual[key] for key in usual):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or "▁" not in model["vocab"]:
        return False
    return not any(re.search("[^▁]▁", piece) for piece in model["vocab"])


def fits(rule: Rule, text: str) -> bool:
    """Whether a text can be cut into words, and has enough of them."""
    return text.count(" ") * _SPARSE > len(text) and not any(word in text for word in rule.foreign)


def remembering(rule: Rule, encode: Callable[[list[str]], list[bytes]]) -> Callable[[Sequence[str]], list[Words]]:
    """A function from texts to their words and, for each of these, its tokens as bytes; it asks `encode` once for each word.

    Threads may call it at the same time.
    """
    memory: list[dict[str, bytes]] = [{}]
    characters = 0

    def words_of(texts: Sequence[str]) -> list[Words]:
        nonlocal characters
        if characters > _MOST:
            memory[0], characters = {}, 0
        known = memory[0]  # another thread may begin anew
        cut = [rule.cut(text) for text in texts]
        new = list(set().union(*cut).difference(known))
        characters += sum(map(len, new))
        known.update(zip(new, encode(new), strict=True))
        return [Words(words, list(map(known.__getitem__, words))) for words in cut]

    return words_of
