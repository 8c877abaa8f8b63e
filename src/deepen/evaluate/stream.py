"""A text as a model's tokens: one stream that knows of each token its document, its bytes and its words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepen.data.sources import Paths, find_sources, no_text, read_documents, several_documents
from deepen.data.text import Tokens
from deepen.progress import progress

Counts = NDArray[np.int64]
Encode = Callable[[str], tuple[Sequence[int], Counts]]
"""From a text to its token ids and the byte, in UTF-8, at which each ends."""

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Stream:
    """Documents as one sequence of tokens, with the end-of-text token between them.

    Attributes:
        tokens: their ids, shape (tokens,).
        bytes: how many bytes of the text, in UTF-8, end with each token; 0 for what stands between documents.
        words: how many words, that is runs without white space, begin in each.
        documents: the number of the document that each belongs to; what stands after a document belongs to it.
    """

    tokens: Tokens
    bytes: Counts
    words: Counts
    documents: Counts

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, tokens: int | None) -> Stream:
        """The same up to a number of tokens."""
        return Stream(self.tokens[:tokens], self.bytes[:tokens], self.words[:tokens], self.documents[:tokens])


def read_stream(data: Paths, encode: Encode, *, end_of_text: int | None) -> Stream:
    """Tokenise data, each document in one piece; a document is a file of text, or a row of JSON lines or Parquet.

    Args:
        data: files, folders, globs and data sets, as in `find_sources`.
        encode: the tokenizer.
        end_of_text: id of the token that separates documents, if the tokenizer has one.

    Raises:
        DataError: a file (and row) is missing, empty, not UTF-8 or of an unknown kind; or there are several documents and no
            end-of-text token.
    """
    sources = find_sources(data)
    parts: list[tuple[Tokens, Counts, Counts]] = []
    with progress("Tokenising", sum(file.size for source in sources for file in source.files), "B") as advance:
        for source in sources:
            before = len(parts)
            for text in read_documents(source.files, "text"):
                if parts:
                    parts[-1] = _ended(parts[-1], end_of_text, source.name)
                parts.append(_encoded(text, encode))
                advance(len(text.encode()))
            if len(parts) == before:
                raise no_text(source.name)
    documents = np.repeat(np.arange(len(parts)), [len(tokens) for tokens, _, _ in parts])
    tokens, lengths, words = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Stream(tokens, lengths, words, documents)


def transformers_encoder(tokenizer: Any) -> Encode:
    """`Encode` of a transformers tokenizer. One that does not say where its tokens end spreads the bytes evenly."""

    def encode(text: str) -> tuple[Sequence[int], Counts]:
        found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
        ids: list[int] = found["input_ids"]
        if not tokenizer.is_fast:
            return ids, np.linspace(0, len(text.encode()), len(ids) + 1).astype(np.int64)[1:]
        characters = np.array([end for _, end in found["offset_mapping"]], dtype=np.int64)
        return ids, _byte_places(text)[characters]

    return encode


def _encoded(text: str, encode: Encode) -> tuple[Tokens, Counts, Counts]:
    ids, ends = encode(text)
    places = _byte_places(text)
    ends = np.maximum.accumulate(np.minimum(ends, places[-1]))
    ends[-1:] = places[-1]  # what a tokenizer leaves away at the end is text all the same
    starts = places[np.fromiter((match.start() for match in _WORD.finditer(text)), dtype=np.int64)]
    begun = np.searchsorted(starts, ends, side="left")
    return np.asarray(ids, dtype=np.int32), np.diff(ends, prepend=0), np.diff(begun, prepend=0)


def _byte_places(text: str) -> Counts:
    """Where in UTF-8 each character begins, and the end."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    lengths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(lengths)])


def _ended(part: tuple[Tokens, Counts, Counts], end_of_text: int | None, name: str) -> tuple[Tokens, Counts, Counts]:
    if end_of_text is None:
        raise several_documents(name)
    tokens, lengths, words = part
    return np.append(tokens, np.int32(end_of_text)), np.append(lengths, 0), np.append(words, 0)
