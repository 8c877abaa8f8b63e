"""Plain text to rows of tokens: read, tokenise, pack, and put in an order that depends on (seed, step) alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepen.errors import DataError
from deepen.progress import progress

Tokens = NDArray[np.int32]
Paths = str | Path | Sequence[str | Path]
Encode = Callable[[str], Sequence[int]]
"""From a text to its token ids, without special tokens around it."""
IGNORED = -100
"""The label of a place where nothing is learned."""

_PLAIN = {".txt", ".md"}
_ROWS = ".jsonl"


def read_tokens(data: Paths, encode: Encode, *, end_of_text: int | None) -> Tokens:
    """Tokenise files into one stream.

    A `.txt` or `.md` file is one document and is tokenised in one piece; in a `.jsonl` file each row's `text` is one. Between
    documents stands the end-of-text token, so a single document gets none.

    Args:
        data: one path or several.
        encode: the tokenizer.
        end_of_text: id of the token that separates documents, if the tokenizer has one.

    Returns:
        Token ids, shape (tokens,).

    Raises:
        DataError: a file (and row) is missing, empty, not UTF-8 or of an unknown kind; or there are several documents and no
            end-of-text token.
    """
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]
    if not paths:
        raise DataError("no data", next="name one or more .txt, .md or .jsonl files")
    pieces: list[Tokens] = []
    with progress("Tokenising", sum(map(_size, paths)), "B") as advance:
        for path in paths:
            for text in _documents(path):
                if pieces:
                    pieces.append(_separator(end_of_text, path))
                pieces.append(np.asarray(encode(text), dtype=np.int32))
                advance(len(text.encode()))
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


def check_vocabulary(tokens: Tokens, vocabulary: int) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        DataError: the tokenizer gave an id that is not below `vocabulary`.
    """
    highest = int(tokens.max())
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


def _size(path: Path) -> int:
    if path.suffix not in {*_PLAIN, _ROWS}:
        raise DataError("not a .txt, .md or .jsonl file", where=path, next="convert it to one of these")
    if not path.is_file():
        raise DataError("no such file", where=path, next="check the path")
    return path.stat().st_size


def _documents(path: Path) -> Iterator[str]:
    if path.suffix == _ROWS:
        found = False
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and (text := _row_text(line, f"{path}, row {number}")):
                    found = True
                    yield text
    else:
        text = _decode(path.read_bytes(), str(path))
        found = bool(text.strip())
        if found:
            yield text
    if not found:
        raise DataError("there is no text in it", where=path, next="give a file with text")


def _row_text(line: bytes, where: str) -> str:
    try:
        row = json.loads(_decode(line, where))
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})", where=where, next="write one JSON object per line") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError("not an object with a string under `text`", where=where, next='write {"text": "…"} per line')
    return str(row["text"]).strip() and row["text"]


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})", where=where, next="convert it to UTF-8") from error


def _separator(end_of_text: int | None, path: Path) -> Tokens:
    if end_of_text is None:
        raise DataError(
            "there are several documents, but the tokenizer has no end-of-text token to part them",
            where=path,
            next="join them into one text file",
        )
    return np.array([end_of_text], dtype=np.int32)
