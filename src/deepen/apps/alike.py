"""Words that mean nearly the same, from a language model's own input embeddings: nothing is downloaded or trained.

The mean and the two strongest directions of all word vectors carry how frequent a word is rather than what it means, and are
taken away (Mu and Viswanath, "All-but-the-Top", ICLR 2018); what is left is cut to its 128 strongest directions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deepen.checkpoint import open_checkpoint
from deepen.checkpoint.convert import FLOATS, decode
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.checkpoint.reader import Tensor, read_json
from deepen.errors import DeepenError
from deepen.output import cache_folder
from deepen.prepare import fingerprint

_DIMENSIONS = 128
_COMMON_DIRECTIONS = 2
_CHANCE = 2e-4  # of all pairs of words so many are counted as alike: 5 of 25,000
_MOST = 30  # words alike to one word at most
_ROWS = 4096  # decoded at once
_SMALLEST = 1000  # a vocabulary with fewer whole words says nothing

Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Alike:
    """Words with their directions.

    Attributes:
        words: in small letters.
        vectors: their directions, of length 1: words times 128.
        least: the cosine from which two words count as alike.
    """

    words: Sequence[str]
    vectors: Vectors
    least: float

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def near(self, word: str) -> dict[str, float]:
        """Other words that mean nearly the same, and the cosine of each; none for a word that is not known."""
        row = self._rows.get(word)
        if row is None:
            return {}
        cosines = self.vectors @ self.vectors[row]
        best = np.argsort(-cosines)[: _MOST + 1]
        return {self.words[each]: float(cosines[each]) for each in best if each != row and cosines[each] >= self.least}


def open_alike(model: Path) -> Alike | None:
    """The words of a model, made once and kept in the cache; None where its embeddings or its vocabulary cannot be read.

    Args:
        model: a checkpoint folder or a GGUF file.
    """
    kept = cache_folder() / f"words-{fingerprint(model, 'alike 1')}.npz"
    try:
        with np.load(kept) as file:
            return Alike(str(file["words"]).split("\n"), file["vectors"].astype(np.float32), float(file["least"]))
    except (OSError, ValueError, KeyError, EOFError):
        pass
    made = _make(model)
    if made is not None:
        partial = kept.with_name(f".{kept.name}.{os.getpid()}.npz")
        with suppress(OSError):  # without room in the cache it is made again the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(partial, words="\n".join(made.words), vectors=made.vectors.astype(np.float16), least=made.least)
            partial.replace(kept)
    return made


def _make(model: Path) -> Alike | None:
    try:
        vocabulary, table, columns = _read(model)
    except (DeepenError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # an architecture or a vocabulary of another kind
    chosen = sorted(_words(vocabulary).items(), key=lambda item: item[1])
    if len(chosen) < _SMALLEST or (chosen[-1][1] + 1) * columns > table.parameters:
        return None
    ids = np.array([number for _, number in chosen])
    vectors = np.concatenate(
        [rows[ids[(ids >= first) & (ids < first + len(rows))] - first] for first, rows in _values(table, columns)]
    )
    vectors -= vectors.mean(axis=0)
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    vectors = vectors @ directions[:, ::-1][:, _COMMON_DIRECTIONS : _COMMON_DIRECTIONS + _DIMENSIONS]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    some = np.random.default_rng(0).permutation(len(vectors))[:500]
    # a word's cosine with itself is none of chance
    least = float(np.quantile(vectors[some] @ vectors.T, 1 - _CHANCE - 1 / len(vectors)))
    return Alike([word for word, _ in chosen], vectors, least)


def _words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Tokens that are whole words after a space, by their small letters; the token in small letters goes first."""
    found: dict[str, int] = {}
    for token in sorted(vocabulary, key=lambda token: token != token.lower()):
        word = token[1:]
        if token[:1] in {"Ġ", "▁"} and len(word) > 1 and word.isalpha():
            found.setdefault(word.lower(), vocabulary[token])
    return found


def _read(model: Path) -> tuple[Mapping[str, int], Tensor, int]:
    """The vocabulary of a model, the table of its input embeddings, and the numbers in a row of it."""
    if is_gguf(model):
        header = open_gguf(model)
        table = header.tensors["token_embd.weight"]
        return {token: number for number, token in enumerate(header.get("tokenizer.ggml.tokens"))}, table, table.shape[0]
    vocabulary = read_json(model / "tokenizer.json")["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    table = open_checkpoint(model).tensors["model.embed_tokens.weight"]
    return vocabulary, table, table.shape[1]


def _values(table: Tensor, columns: int) -> Iterator[tuple[int, Vectors]]:
    """The rows of a table, some at a time, with the number of the first."""
    count = table.parameters // columns
    size = table.nbytes // count
    with table.file.open("rb") as file:
        file.seek(table.offset)
        for first in range(0, count, _ROWS):
            number = min(_ROWS, count - first)
            data = file.read(number * size)
            if table.dtype in FLOATS:
                values = decode(data, table.dtype)
            else:
                from gguf import GGMLQuantizationType
                from gguf.quants import dequantize

                values = dequantize(np.frombuffer(data, np.uint8).reshape(number, size), GGMLQuantizationType[table.dtype])
            yield first, np.asarray(values, np.float32).reshape(number, columns)
