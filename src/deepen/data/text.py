"""Plain text to rows of tokens: read, tokenise, pack, and put in an order that depends on (seed, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepen.data.sources import Paths, find_sources, no_text, read_documents, several_documents
from deepen.errors import DataError
from deepen.progress import progress

__all__ = [
    "IGNORED", "Encode", "Paths", "Tokens", "check_vocabulary", "encoder", "pack", "read_tokens", "rows_of_step",
]  # fmt: skip

Tokens = NDArray[np.int32]
Encode = Callable[[str], Sequence[int]]
"""From a text to its token ids, without special tokens around it."""
IGNORED = -100
"""The label of a place where nothing is learned."""


def read_tokens(data: Paths, encode: Encode, *, end_of_text: int | None, column: str = "text") -> Tokens:
    """Tokenise data into one stream in memory, each document in one piece; see `open_corpus` for what need not be in memory.

    Between documents stands the end-of-text token, so a single document gets none.

    Args:
        data: files, folders, globs and data sets, as in `find_sources`.
        encode: the tokenizer.
        end_of_text: id of the token that separates documents, if the tokenizer has one.
        column: the name of the text in rows.

    Returns:
        Token ids, shape (tokens,).

    Raises:
        DataError: a file (and row) is missing, empty, not UTF-8 or of an unknown kind; or there are several documents and no
            end-of-text token.
    """
    sources = find_sources(data)
    pieces: list[Tokens] = []
    with progress("Tokenising", sum(file.size for source in sources for file in source.files), "B") as advance:
        for source in sources:
            before = len(pieces)
            for text in read_documents(source.files, column):
                if pieces:
                    pieces.append(_separator(end_of_text, source.name))
                pieces.append(np.asarray(encode(text), dtype=np.int32))
                advance(len(text.encode()))
            if len(pieces) == before:
                raise no_text(source.name)
    return np.concatenate(pieces)


def encoder(tokenizer: Any) -> Encode:
    """`Encode` of a transformers tokenizer."""

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return encode


def pack(tokens: Tokens, length: int, *, where: object) -> Tokens:
    """Cut a stream of tokens into rows; the rest that fills no row is left out.

    Returns:
        Shape (rows, length), a view.

    Raises:
        DataError: there are fewer tokens than one row needs; the message names `where`.
    """
    rows = len(tokens) // length
    if rows == 0:
        raise DataError(
            f"{len(tokens)} tokens are too few for one row of {length}",
            where=str(where),
            next="give more text or a smaller sequence length",
        )
    return tokens[: rows * length].reshape(rows, length)


def check_vocabulary(tokens: Tokens | int, vocabulary: int) -> None:
    """Refuse tokens, or the highest of them, that the model has no embedding for.

    Raises:
        DataError: the tokenizer gave an id that is not below `vocabulary`.
    """
    highest = int(np.max(tokens))
    if highest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token {highest}, but the model's vocabulary has {vocabulary}",
            next="use the tokenizer that the model was trained with",
        )


def rows_of_step(step: int, *, rows: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Which rows make up the batch of a step: each epoch is a permutation of all rows, drawn from (seed, epoch).

    Args:
        step: zero-based.
        rows: how many rows there are.
        batch: rows per step; a batch may run on into the next epoch.
        seed: of the whole run.

    Returns:
        Row indices, shape (batch,).
    """
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), rows)
    return np.array([_permutation(rows, seed, int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def _separator(end_of_text: int | None, name: str) -> Tokens:
    if end_of_text is None:
        raise several_documents(name)
    return np.array([end_of_text], dtype=np.int32)
