"""Tokenise documents in pieces, many at once, with the very tokens of each document in one piece."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepen.data.sources import OVERLAP, Piece, Place
from deepen.data.words import Words, fits, remembering, word_rule
from deepen.errors import DataError

Ids = NDArray[np.integer[Any]]
_RUN = 32  # so many tokens in a row must be the same where two pieces are joined
_BATCH = 1 << 20  # characters that are tokenised at once


class Encoded(NamedTuple):
    """The tokens of a piece, and where near its two ends a token begins: from characters to tokens, in ascending order."""

    ids: Ids
    left: dict[int, int]
    right: dict[int, int]


class Encoder(NamedTuple):
    """A tokenizer as this module needs it.

    Attributes:
        encode: tokenises some pieces, without special tokens around them.
        whole: it needs every document in one piece.
        dtype: the smallest of the types uint16 and int32 that holds its tokens.
        fingerprint: a hash of all that decides its tokens.
        end_of_text: the token between documents, if it has one.
    """

    encode: Callable[[Sequence[Piece]], list[Encoded]]
    whole: bool
    dtype: np.dtype[Any]
    fingerprint: str
    end_of_text: int | None


class Part(NamedTuple):
    """Some tokens of a document.

    Attributes:
        ids: the tokens.
        first: a document begins with them.
        place: of the piece that they come from, or None, where reading cannot begin.
        skip: how many tokens of that piece lie before them.
        advance: bytes of the files that are done with them.
    """

    ids: Ids
    first: bool
    place: Place | None
    skip: int
    advance: int


def open_encoder(tokenizer: Any, *, by_words: bool = True) -> Encoder:
    """`Encoder` of a transformers tokenizer; `by_words` lets it cut texts into words where that changes nothing."""
    highest = max([*tokenizer.get_vocab().values(), tokenizer.eos_token_id or 0])
    dtype = np.dtype(np.uint16 if highest < 1 << 16 else np.int32)
    if not tokenizer.is_fast:
        return Encoder(_slow(tokenizer, dtype), True, dtype, _hash_files(tokenizer), tokenizer.eos_token_id)
    from tokenizers import Tokenizer

    # a copy, because truncation and the like are settings of the object
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    text = f"{backend.encode_special_tokens} {backend.to_str()}"
    return Encoder(
        _fast(backend, dtype, by_words), False, dtype, hashlib.sha256(text.encode()).hexdigest(), tokenizer.eos_token_id
    )


def tokenise(pieces: Iterable[Piece], encoder: Encoder, *, skip: int = 0) -> Iterator[Part]:
    """Tokenise pieces and join those of one document.

    Two neighbouring pieces have some text in common. They are joined in it where both have a token that begins at the same
    character and the same tokens after it. For byte-pair encoding this is exact: a sequence of tokens is the encoding of a text
    if each two neighbours are the encoding of theirs, and all neighbours are neighbours in one of the pieces (Berglund and
    van der Merwe, "Formalizing BPE Tokenization", 2023). Where there is no such place, the two pieces become one.

    Args:
        pieces: documents in order; the first piece may lie inside a document.
        encoder: the tokenizer.
        skip: how many tokens of the first piece are not wanted, because they were given out before.

    Raises:
        DataError: a document cannot be tokenised in pieces.
    """
    pending: Piece | None = None
    tokens: Encoded | None = None
    known, wanted = np.empty(0, encoder.dtype), 0
    for piece, encoded in _encoded(_whole(pieces) if encoder.whole else pieces, encoder):
        if pending is None:
            pending, tokens, wanted = piece, encoded, 0
            known = encoded.ids[skip : skip + _RUN] if skip else known[:0]
        elif tokens is not None and (seam := _seam(pending, tokens, encoded)):
            yield Part(tokens.ids[skip : seam[0]], pending.first, pending.place, skip, pending.advance)
            pending, tokens, skip, wanted = piece, encoded, seam[1], 0
            known = encoded.ids[skip : skip + _RUN]
        else:
            pending, tokens = _merged(pending, piece), None
            # twice as long each time: a text without any seam takes no more than a few times as long as in one piece
            wanted = wanted or 2 * len(pending.text)
            if pending.last or len(pending.text) >= wanted:
                tokens, wanted = encoder.encode([pending])[0], 2 * len(pending.text)
                if not np.array_equal(tokens.ids[skip : skip + len(known)], known):
                    raise DataError(
                        "the tokenizer gives a long text other tokens than its parts", next="cut the text into documents"
                    )
        if pending.last:
            assert tokens is not None
            yield Part(tokens.ids[skip:], pending.first, pending.place, skip, pending.advance)
            pending, skip = None, 0


def _encoded(pieces: Iterable[Piece], encoder: Encoder) -> Iterator[tuple[Piece, Encoded]]:
    # the tokenizer itself uses all cores; the second thread works on words while the first waits for it
    threads = 1 if encoder.whole else 2
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[tuple[list[Piece], Future[list[Encoded]]]] = deque()
        for batch in _batches(pieces):
            under_way.append((batch, pool.submit(encoder.encode, batch)))
            if len(under_way) > threads:
                first, encoded = under_way.popleft()
                yield from zip(first, encoded.result(), strict=True)
        for first, encoded in under_way:
            yield from zip(first, encoded.result(), strict=True)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _whole(pieces: Iterable[Piece]) -> Iterator[Piece]:
    parts: list[Piece] = []
    for piece in pieces:
        parts.append(piece)
        if piece.last:
            text = "".join(part.text[: part.step] for part in parts)
            advance = sum(part.advance for part in parts)
            yield replace(parts[0], text=text, last=True, step=len(text), advance=advance)
            parts = []


def _merged(left: Piece, right: Piece) -> Piece:
    return replace(
        left,
        text=left.text[: left.step] + right.text,
        last=right.last,
        step=left.step + right.step,
        advance=left.advance + right.advance,
    )


def _seam(piece: Piece, left: Encoded, right: Encoded) -> tuple[int, int] | None:
    """Where two pieces are joined: at which token of each."""
    common = len(piece.text) - piece.step
    for character, second in right.left.items():
        first = left.right.get(piece.step + character)
        if first is None or not common <= 4 * character <= 3 * common:  # away from the ends, whose tokens may be others
            continue
        run = left.ids[first : first + _RUN]
        if len(run) == _RUN and np.array_equal(run, right.ids[second : second + _RUN]):
            return first, second
    return None


def _fast(backend: Any, dtype: np.dtype[Any], by_words: bool) -> Callable[[Sequence[Piece]], list[Encoded]]:
    def encode_words(words: list[str]) -> list[bytes]:
        encodings = backend.encode_batch_fast(words, add_special_tokens=False)
        return [np.array(encoding.ids, dtype).tobytes() for encoding in encodings]

    rule = word_rule(json.loads(backend.to_str())) if by_words else None
    words_of = None if rule is None else remembering(rule, encode_words)

    def encode(pieces: Sequence[Piece]) -> list[Encoded]:
        found: dict[int, Encoded] = {}
        if rule is not None and words_of is not None:
            apt = [number for number, piece in enumerate(pieces) if fits(rule, piece.text)]
            for number, words in zip(apt, words_of([pieces[number].text for number in apt]), strict=True):
                ids = np.frombuffer(b"".join(words.tokens), dtype)
                found[number] = Encoded(ids, *_word_marks(words, len(ids), pieces[number], rule.gap, dtype.itemsize))
        # only where pieces are to be joined it must be known where tokens begin, which takes longer
        for joined, encode_batch in ((False, backend.encode_batch_fast), (True, backend.encode_batch)):
            rest = [n for n, piece in enumerate(pieces) if n not in found and joined != (piece.first and piece.last)]
            encodings = encode_batch([pieces[number].text for number in rest], add_special_tokens=False)
            for number, encoding in zip(rest, encodings, strict=True):
                marks = _marks(encoding, pieces[number]) if joined else ({}, {})
                found[number] = Encoded(np.array(encoding.ids, dtype), *marks)
        return [found[number] for number in range(len(pieces))]

    return encode


def _word_marks(words: Words, total: int, piece: Piece, gap: int, size: int) -> tuple[dict[int, int], dict[int, int]]:
    left: dict[int, int] = {}
    right: dict[int, int] = {}
    character, token = -gap, 0
    for word, tokens in zip(*words, strict=True) if not piece.first else ():
        if character > 0:
            left[character] = token
        character, token = character + gap + len(word), token + len(tokens) // size
        if character >= OVERLAP:
            break
    character, token = len(piece.text), total
    for word, tokens in zip(reversed(words.words), reversed(words.tokens), strict=True) if not piece.last else ():
        character, token = character - gap - len(word), token - len(tokens) // size
        if character < piece.step:
            break
        right[character] = token
    return left, right


def _marks(encoding: Any, piece: Piece) -> tuple[dict[int, int], dict[int, int]]:
    """Where tokens begin that share no character with the token before, which parts of a character's bytes do."""
    left: dict[int, int] = {}
    right: dict[int, int] = {}
    total = len(encoding)
    end = 0
    for token in range(0, 0 if piece.first else total):
        begin, following = encoding.token_to_chars(token) or (end, end)
        if begin >= OVERLAP:
            break
        if token and end <= begin < following:
            left[begin] = token
        end = following
    later = len(piece.text)
    for token in range(total - 1, 0, -1) if not piece.last else ():
        begin, following = encoding.token_to_chars(token) or (later, later)
        if begin < piece.step:
            break
        before = encoding.token_to_chars(token - 1)
        if before is not None and before[1] <= begin < following:
            right[begin] = token
    return left, right


def _slow(tokenizer: Any, dtype: np.dtype[Any]) -> Callable[[Sequence[Piece]], list[Encoded]]:
    def encode(pieces: Sequence[Piece]) -> list[Encoded]:
        texts = [piece.text for piece in pieces]
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [Encoded(np.array(ids, dtype), {}, {}) for ids in rows]

    return encode


def _hash_files(tokenizer: Any) -> str:
    """A hash of what the tokenizer writes when it is saved."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
