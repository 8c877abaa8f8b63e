"""A tokenizer's files as the vocabulary of a GGUF.

Two kinds: SentencePiece (pieces with scores; llama.cpp calls it "llama") and byte-level BPE (merges; "gpt2"). A byte-level
tokenizer first splits text by a rule that GGUF only names, so the rule must be one that llama.cpp has under a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from deepen.checkpoint.reader import read_json
from deepen.errors import CheckpointError, UnsupportedModelError
from deepen.export.sentencepiece import read_pieces

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# How text is split, and whether a word that is a token by itself skips the merges -> llama.cpp's name (src/llama-vocab.cpp)
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    (("digits", "gpt2"), False): "smollm",
    ((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",), True): "llama-bpe",
    ((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",), False): "dbrx",
    ((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",), False): "qwen2",
    ((rf"{_WORDS[0]}|{_WORDS[1]}|\p{{N}}|{_CASED_TAIL}",), True): "tekken",
    (
        (rf"{_WORDS[0]}{_CONTRACTIONS}?|{_WORDS[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_TAIL}",),
        False,
    ): "gpt-4o",
}
_ADVICE = "convert it with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says about text and tokens.

    Attributes:
        model: `"llama"` (SentencePiece) or `"gpt2"` (byte-level BPE).
        pre: llama.cpp's name of the rule that splits text.
        tokens: the tokens in id order, padded to the model's vocabulary.
        types: their kinds, as `gguf.TokenType`.
        scores: merge priority per token (SentencePiece only).
        merges: the merges, best first (byte-level only).
        special: ids by role: bos, eos, eot, eom, unk, pad.
        add_bos: encoding puts the BOS token first.
        add_eos: encoding puts the EOS token last.
        add_space_prefix: encoding puts a space first.
        chat_template: Jinja text, or several by name, or None.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    special: Mapping[str, int] | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_template: str | list[dict[str, str]] | None = None


def read_vocabulary(folder: Path, size: int, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a checkpoint folder, padded to `size` tokens (the rows of the embedding).

    Raises:
        CheckpointError: there is no tokenizer, or its files contradict each other or the model.
        UnsupportedModelError: llama.cpp has no tokenizer that does the same.
    """
    try:
        return _read(folder, size, config)
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:  # a file from a stranger
        raise CheckpointError(
            f"the tokenizer's files are not as tokenizers are written ({type(error).__name__}: {str(error)[:100]})",
            where=folder,
            next="download the tokenizer again",
        ) from error


def _read(folder: Path, size: int, config: Mapping[str, Any]) -> Vocabulary:
    tokenizer = _json(folder, "tokenizer.json")
    settings = {**_json(folder, "special_tokens_map.json"), **_json(folder, "tokenizer_config.json")}
    if tokenizer and _is_byte_level(tokenizer):
        vocabulary = _byte_level(tokenizer, folder)
    elif (folder / "tokenizer.model").is_file():
        vocabulary = _sentencepiece(folder, settings)
    elif tokenizer:
        vocabulary = _sentencepiece_from_merges(tokenizer, folder)
    else:
        raise CheckpointError(
            "no tokenizer (tokenizer.json or tokenizer.model)", where=folder, next="copy the tokenizer's files into the folder"
        )
    vocabulary = _pad(vocabulary, size, folder)
    special = _special_tokens(folder, vocabulary, settings, config)
    add_bos, add_eos = _added(tokenizer, settings)
    return replace(
        vocabulary,
        special=special,
        add_bos=add_bos and "bos" in special,
        add_eos=add_eos and "eos" in special,
        chat_template=_chat_template(folder, settings),
    )


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the `tokenizer.*` keys."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_scores(vocabulary.scores)  # an empty list writes no key
    writer.add_token_merges(vocabulary.merges)
    for role, token in (vocabulary.special or {}).items():
        getattr(writer, f"add_{role}_token_id")(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def stop_tokens(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The ids of the tokens that end an answer, by generation_config.json or else by config.json."""
    stops = _json(folder, "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of steps."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [step for child in part.get(key, []) for step in _steps(child, key)]
    return [part]


def _byte_level(tokenizer: Mapping[str, Any], folder: Path) -> Vocabulary:
    model = _model(tokenizer, folder)
    pre = _pre_tokenizer(tokenizer, folder)
    tokens = dict.fromkeys(model["vocab"], TokenType.NORMAL)
    ids = {index: text for text, index in model["vocab"].items()}
    types = {index: int(tokens[text]) for index, text in ids.items()}
    _place_added(ids, types, tokenizer.get("added_tokens", []))
    return Vocabulary("gpt2", pre, *_dense(ids, types), merges=tuple(" ".join(pair) for pair in _pairs(model)))


def _pre_tokenizer(tokenizer: Mapping[str, Any], folder: Path) -> str:
    """llama.cpp's name for how the tokenizer splits text, or a refusal: a near miss would give other tokens silently."""
    steps: list[str] = []
    described = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    for step in described:
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False}:
                steps += ["gpt2"] if step.get("use_regex", True) else []
            case {"type": "Digits", "individual_digits": True}:
                steps.append("digits")
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
                steps.append(pattern)
            case _:
                steps.append(f"unknown {step.get('type')}")
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    name = _PRE_TOKENIZERS.get((tuple(steps), ignore_merges))
    normalizers = [str(step.get("type")) for step in _steps(tokenizer.get("normalizer"), "normalizers")]
    # llama.cpp normalises nothing; text that is NFC already (nearly all is) gets the same tokens
    if name is None or normalizers not in ([], ["NFC"]):
        rule = " + ".join([*normalizers, *(str(step.get("type")) for step in described)])
        raise UnsupportedModelError(
            f"the tokenizer splits text by a rule ({rule}) that has no known name in llama.cpp",
            where=folder / "tokenizer.json",
            next=_ADVICE,
        )
    return name


def _sentencepiece(folder: Path, settings: Mapping[str, Any]) -> Vocabulary:
    pieces = read_pieces(folder / "tokenizer.model")
    ids, types = dict(enumerate(pieces.texts)), dict(enumerate(pieces.types))
    added = [{"id": index, "content": text, "special": False} for text, index in _json(folder, "added_tokens.json").items()]
    decoder = settings.get("added_tokens_decoder") or {}
    added += [{**token, "id": int(index)} for index, token in decoder.items() if isinstance(token, dict)]
    _place_added(ids, types, added)
    tokens, kinds = _dense(ids, types)
    scores = (*pieces.scores, *(-1000.0 for _ in tokens[len(pieces.scores) :]))
    return Vocabulary("llama", "default", tokens, kinds, scores=scores, add_space_prefix=pieces.add_prefix_space)


def _sentencepiece_from_merges(tokenizer: Mapping[str, Any], folder: Path) -> Vocabulary:
    """A SentencePiece BPE that exists only as a tokenizer.json, as transformers 5 saves it.

    There the scores are gone, but the order of the merges is their order: a token's score is minus the rank of the first merge
    that makes it.
    """
    model = _model(tokenizer, folder)
    metaspace = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    kinds = [step.get("type") for step in (*normalizers, *metaspace)]
    if not model.get("byte_fallback") or kinds not in (["Metaspace"], ["Prepend", "Replace"], ["Replace"]):
        raise UnsupportedModelError(
            f"the tokenizer ({' + '.join(map(str, kinds)) or 'no rule'}) is neither byte-level BPE nor SentencePiece BPE",
            where=folder / "tokenizer.json",
            next=_ADVICE,
        )
    ids = {index: text for text, index in model["vocab"].items()}
    unknown = model.get("unk_token")
    types = {
        index: int(
            TokenType.UNKNOWN
            if text == unknown
            else TokenType.BYTE
            if re.fullmatch("<0x[0-9A-F]{2}>", text)
            else TokenType.NORMAL
        )
        for index, text in ids.items()
    }
    _place_added(ids, types, tokenizer.get("added_tokens", []))
    tokens, dense_types = _dense(ids, types)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_pairs(model), start=1):
        ranks.setdefault("".join(pair), rank)
    prefix = kinds[0] == "Prepend" or any(step.get("prepend_scheme", "never") != "never" for step in metaspace)
    scores = tuple(-float(ranks.get(text, 0)) for text in tokens)
    return Vocabulary("llama", "default", tokens, dense_types, scores=scores, add_space_prefix=prefix)


def _model(tokenizer: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise UnsupportedModelError("the tokenizer is not of the BPE kind", where=folder / "tokenizer.json", next=_ADVICE)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise UnsupportedModelError(
            "the tokenizer marks parts of words, or drops merges, which llama.cpp does not", where=folder, next=_ADVICE
        )
    return model


def _pairs(model: Mapping[str, Any]) -> list[list[str]]:
    # tokenizers before 0.20 wrote "left right", later ones ["left", "right"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]


def _place_added(ids: dict[int, str], types: dict[int, int], added: Sequence[Mapping[str, Any]]) -> None:
    for token in added:
        index, known = token["id"], types.get(token["id"])
        ids[index] = token["content"]
        if known != TokenType.UNKNOWN:
            types[index] = int(TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED)


def _dense(ids: Mapping[int, str], types: Mapping[int, int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens and types in id order; ids that nothing uses become placeholders."""
    every = range(max(ids, default=-1) + 1)
    return (
        tuple(ids.get(index, f"[PAD{index}]") for index in every),
        tuple(types.get(index, int(TokenType.UNUSED)) for index in every),
    )


def _pad(vocabulary: Vocabulary, size: int, folder: Path) -> Vocabulary:
    missing = range(len(vocabulary.tokens), size)
    if len(vocabulary.tokens) > size:
        raise CheckpointError(
            f"the tokenizer has {len(vocabulary.tokens)} tokens, but the embedding only {size} rows",
            where=folder,
            next="give the tokenizer that belongs to the model, or resize the embedding",
        )
    return replace(
        vocabulary,
        tokens=(*vocabulary.tokens, *(f"[PAD{index}]" for index in missing)),
        types=(*vocabulary.types, *(int(TokenType.UNUSED) for _ in missing)),
        scores=(*vocabulary.scores, *(-1000.0 for _ in missing)) if vocabulary.scores else (),
    )


def _special_tokens(
    folder: Path, vocabulary: Vocabulary, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, int]:
    """Ids by role. What ends an answer is what generation_config says, for that is what `generate` obeys."""
    ids = {text: index for index, text in reversed(list(enumerate(vocabulary.tokens)))}
    special: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        entry = settings.get(f"{role}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        index = ids.get(text) if isinstance(text, str) else config.get(f"{role}_token_id")
        if isinstance(index, int):
            special[role] = index
    stops = stop_tokens(folder, config)
    if special.get("eos") in stops:
        stops = [special["eos"], *(stop for stop in stops if stop != special["eos"])]
    if len(stops) > 3:
        raise UnsupportedModelError(
            f"{len(stops)} tokens end an answer, but a GGUF holds three",
            where=folder,
            next="shorten generation_config's eos_token_id",
        )
    special |= dict(zip(("eos", "eot", "eom"), stops, strict=False))
    for role, index in special.items():
        if type(index) is not int or not 0 <= index < len(vocabulary.tokens):
            raise CheckpointError(
                f"the {role} token {index!r} is not in the vocabulary", where=folder, next="correct the tokenizer's files"
            )
    return special


def _added(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether encoding adds BOS and EOS: what tokenizer_config says, else tokenizer.json's template, else as Llama did."""
    if "add_bos_token" in settings or "add_eos_token" in settings:
        return bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token"))
    if not tokenizer:
        return True, False
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing" and (template := step.get("single")):
            return "SpecialToken" in template[0], "SpecialToken" in template[-1]
    return False, False


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return settings.get("chat_template")


def _json(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError("does not hold a JSON object", where=file, next="download the tokenizer again")
    return content
