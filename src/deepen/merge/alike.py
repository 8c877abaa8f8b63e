"""What models must have in common to be merged: settings, vocabulary, and the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from deepen.checkpoint import Checkpoint, Tensor
from deepen.checkpoint.convert import FLOATS
from deepen.checkpoint.copy import Span, hash_file, hash_span
from deepen.checkpoint.reader import read_json
from deepen.errors import CheckpointError, UnsupportedModelError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "added_tokens.json")
# Config fields that change with who saved or tuned a model; the size of a head is in the shapes of the tensors
_INCIDENTAL = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "auto_map", "bos_token_id", "eos_token_id",
    "pad_token_id", "max_position_embeddings", "initializer_range", "pretraining_tp", "output_router_logits",
    "router_aux_loss_coef", "head_dim",
}  # fmt: skip
_ROTARY = ("rope_parameters", "rope_scaling")  # the new and the old name of one thing
_ADVICE = "merge models that were trained from the same base"


def check_alike(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse two models that cannot be merged, and name what differs.

    Raises:
        UnsupportedModelError: they differ in more than their weights, or tensors are quantised.
        CheckpointError: a vocabulary cannot be read.
    """
    _check_settings(first, other)
    _check_tokenizer(first, other)
    _check_names(first, other)
    for name, tensor in first.tensors.items():
        _check_tensor(first, tensor, other, other.tensors[name])


def _check_settings(first: Checkpoint, other: Checkpoint) -> None:
    # fields that only one config spells out are no difference: versions of transformers differ in what they leave out
    mine, theirs = _settings(first.config), _settings(other.config)
    different = [key for key in mine if key in theirs and mine[key] != theirs[key]]
    if different:
        shown = "; ".join(f"{key} is {theirs[key]!r:.60} here and {mine[key]!r:.60} there" for key in different[:3])
        raise UnsupportedModelError(f"config.json disagrees with that of {first.path}: {shown}", where=other.path, next=_ADVICE)


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config that decide what its weights compute, by dotted name; rotary ones alike in both spellings."""
    rope: dict[str, Any] = next((config[key] for key in _ROTARY if isinstance(config.get(key), dict)), {})
    flat = {**config, **rope} | ({} if prefix else {"rope_type": rope.get("rope_type", rope.get("type", "default"))})
    found: dict[str, Any] = {}
    for key, value in flat.items():
        if key in {*_ROTARY, *_INCIDENTAL, "type"} or key.endswith(("dropout", "_pdrop")):
            continue
        found |= _settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _check_tokenizer(first: Checkpoint, other: Checkpoint) -> None:
    mine, theirs = ({file.as_posix() for file in each.side_files} & {*_TOKENIZERS} for each in (first, other))
    if (mine or theirs) and not mine & theirs:
        raise UnsupportedModelError(
            f"no file of its tokenizer can be compared with those of {first.path}"
            f" ({', '.join(sorted(theirs)) or 'none'} here, {', '.join(sorted(mine)) or 'none'} there)",
            where=other.path,
            next="put the tokenizer's files beside the weights, in the same format",
        )
    for name in _TOKENIZERS:
        if name in mine & theirs and hash_file(first.path / name) != hash_file(other.path / name):
            _check_vocabulary(first.path / name, other.path / name)


def _check_vocabulary(first: Path, other: Path) -> None:
    example = ""
    if first.suffix == ".json":
        pairs = zip_longest(_vocabulary(first), _vocabulary(other), fillvalue=(None, "no token"))
        difference = next(((mine, theirs) for mine, theirs in pairs if mine != theirs), None)
        if difference is None:
            return
        mine, theirs = difference
        example = f": token {theirs[0]} is {theirs[1]!r:.60} here, and token {mine[0]} is {mine[1]!r:.60} there"
    raise UnsupportedModelError(
        f"the vocabulary is not that of {first}{example}", where=other, next="merge models that number their tokens alike"
    )


def _vocabulary(file: Path) -> list[tuple[int, str]]:
    """The tokens of a tokenizer.json, vocab.json or added_tokens.json with their ids, in order."""
    content = read_json(file)
    try:
        whole = file.name == "tokenizer.json"
        vocabulary = content["model"]["vocab"] if whole else content
        added = (whole and content.get("added_tokens")) or []
        if isinstance(vocabulary, list):  # Unigram: pieces with scores, in the order of their ids
            vocabulary = {piece: number for number, (piece, _score) in enumerate(vocabulary)}
        tokens = {(int(number), str(token)) for token, number in vocabulary.items()}
        return sorted(tokens | {(int(token["id"]), str(token["content"])) for token in added})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError("the vocabulary cannot be read", where=file, next="download the tokenizer again") from error


def _check_names(first: Checkpoint, other: Checkpoint) -> None:
    lacking, extra = first.tensors.keys() - other.tensors.keys(), other.tensors.keys() - first.tensors.keys()
    if lacking or extra:
        parts = [f"{len(lacking)} tensors are missing, first {min(lacking)!r}"] if lacking else []
        parts += [f"{len(extra)} are too many, first {min(extra)!r}"] if extra else []
        raise UnsupportedModelError(
            f"the tensors are not those of {first.path}: {' and '.join(parts)}", where=other.path, next=_ADVICE
        )


def _check_tensor(first: Checkpoint, mine: Tensor, other: Checkpoint, theirs: Tensor) -> None:
    dtypes = {mine.dtype, theirs.dtype}
    if mine.shape != theirs.shape:
        raise UnsupportedModelError(
            f"{mine.name} has the shape {list(theirs.shape)}, and {list(mine.shape)} in {first.path}",
            where=other.path,
            next=_ADVICE,
        )
    if any(dtype.startswith("F") and dtype not in FLOATS for dtype in dtypes):
        raise UnsupportedModelError(
            f"{mine.name} is quantised ({theirs.dtype}, and {mine.dtype} in {first.path})",
            where=other.path,
            next="merge the unquantised models",
        )
    # masks, positions and the like have no average
    if not dtypes <= FLOATS.keys() and (len(dtypes) > 1 or _digest(mine) != _digest(theirs)):
        raise UnsupportedModelError(
            f"{mine.name} holds no floats ({theirs.dtype}) and is another than in {first.path}", where=other.path, next=_ADVICE
        )


def _digest(tensor: Tensor) -> str:
    return hash_span(Span(tensor.file, tensor.offset, tensor.nbytes))
