"""Text as memory-mapped tokens: tokenised once, kept in a cache under a hash of what it was made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepen.checkpoint.copy import hash_file
from deepen.data.encode import Encoder, Ids, open_encoder, tokenise
from deepen.data.sources import START, File, Paths, Place, Source, find_sources, no_text, read_pieces, several_documents
from deepen.errors import DataError, OptionError, printable
from deepen.output import cache_folder, new_folder, storage_errors, write_file
from deepen.progress import progress
from deepen.units import format_count

_FORMAT = 1  # of what lies in the cache; part of every key
_TOKENS, _STARTS, _FACTS, _STATE = "tokens.bin", "starts.bin", "corpus.json", "state.json"
SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Corpus:
    """A stream of tokens. Between documents stands the end-of-text token, which belongs to the document before it.

    Attributes:
        tokens: ids, shape (tokens,), memory-mapped uint16 or int32.
        starts: the first token of each document, shape (documents,), memory-mapped int64, ascending from 0.
        files: the first token of each file that it was made from, shape (files,).
        highest: the highest id among the tokens.
        fingerprint: SHA-256 of the tokens and of where the documents begin.
        name: what the user calls it.
    """

    tokens: Ids
    starts: NDArray[np.int64]
    files: NDArray[np.int64]
    highest: int
    fingerprint: str
    name: str


def open_corpus(data: Paths, tokenizer: Any, *, column: str = "text", cache: Path | None = None) -> Corpus:
    """Tokenise text into one stream, or find it in the cache; what each source was read as is printed on stderr.

    The cache is keyed by the bytes of the files and by the tokenizer, so a file of another name with the same bytes is found.
    A run that was interrupted is continued by the next one with the same data, and gives the same tokens.

    Args:
        data: `.txt`, `.md`, `.jsonl` and `.parquet` files, folders of them, globs, and data sets of the Hub.
        tokenizer: of transformers.
        column: the name of the text in rows.
        cache: another folder than `cache_folder()`.

    Raises:
        DataError: the data is missing, of an unknown kind, not UTF-8, broken, or without text; the message names file and row.
            Or there are several documents, and the tokenizer has no end-of-text token.
        MissingDependencyError, NetworkError: as `find_sources` and `read_pieces`.
        OutputError, StorageError: the cache cannot be written.
    """
    sources = find_sources(data)
    return _open(sources, open_encoder(tokenizer), column, cache or cache_folder())


def open_corpora(
    data: Paths,
    tokenizer: Any,
    *,
    weights: Sequence[float] | None = None,
    column: str = "text",
    cache: Path | None = None,
) -> list[Corpus]:
    """One corpus of all data, or with weights one for each of the sources; see `open_corpus`.

    Raises:
        OptionError: there are not as many weights as sources.
    """
    sources = find_sources(data)
    encoder, cache = open_encoder(tokenizer), cache or cache_folder()
    if weights is None:
        return [_open(sources, encoder, column, cache)]
    if len(weights) != len(sources):
        raise OptionError(
            f"{len(weights)} weights for {len(sources)} sources of data", where="--weights", next="give one for each source"
        )
    return [_open([source], encoder, column, cache) for source in sources]


def _open(sources: Sequence[Source], encoder: Encoder, column: str, cache: Path) -> Corpus:
    files = [file for source in sources for file in source.files]
    with storage_errors(cache):
        (cache / "text").mkdir(parents=True, exist_ok=True)
        key = _key(files, encoder, column, cache)
    folder = cache / "text" / key
    where = ", ".join(source.name for source in sources)
    found = folder.exists()
    if not found:
        with _alone(folder):
            if not folder.exists():
                with new_folder(folder, resume=True) as partial:
                    try:
                        _write(partial, files, encoder, column, where)
                    except DataError:  # nobody will go on with it: data that is mended has another hash
                        shutil.rmtree(partial)
                        raise
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    corpus = Corpus(
        np.memmap(folder / _TOKENS, facts["dtype"], mode="r"),
        np.memmap(folder / _STARTS, np.int64, mode="r"),
        np.array(facts["files"], np.int64),
        facts["highest"],
        facts["fingerprint"],
        where,
    )
    _describe(sources, corpus, found=found)
    return corpus


def _describe(sources: Sequence[Source], corpus: Corpus, *, found: bool) -> None:
    bounds = np.append(corpus.files, len(corpus.tokens))[np.cumsum([0, *(len(source.files) for source in sources)])]
    for source, begin, end in zip(sources, bounds, bounds[1:], strict=False):
        documents = int(np.diff(np.searchsorted(corpus.starts, [begin, end]))[0])
        if documents == 0:
            raise no_text(source.name)
        text = f"{documents:,} document{'s'[: documents != 1]}, {format_count(end - begin)} tokens"
        print(printable(f"{source.name}: {source.kind}; {text}{' (tokenised before)' if found else ''}"), file=sys.stderr)


def _key(files: Sequence[File], encoder: Encoder, column: str, cache: Path) -> str:
    """A hash of all that decides the tokens."""
    parts: list[Any] = [_FORMAT, encoder.fingerprint, encoder.end_of_text]
    for file in files:
        if file.rows is not None:
            paths = [Path(entry["filename"]) for entry in file.rows.cache_files]
            hashes = [_content_hash(path, cache) for path in paths]
            parts.append([file.kind, column, str(file.rows.split), len(file.rows), hashes])
        else:
            parts.append([file.kind, None if file.kind == "text" else column, _content_hash(Path(file.name), cache)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _content_hash(path: Path, cache: Path) -> str:
    """The SHA-256 of a file, noted in the cache for as long as the file is not touched."""
    entry = path.stat()
    state = [entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino, entry.st_dev]
    note = cache / "hashes" / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    try:
        noted, digest = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted, digest = None, ""
    if noted != state:
        digest = hash_file(path)
        # what was changed a moment ago may be changed again without a new time
        if time.time_ns() - entry.st_ctime_ns > 2 * 10**9:
            note.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as temporary:  # others may write it as well
                temporary.write(json.dumps([state, digest]))
            Path(temporary.name).replace(note)
    return str(digest)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes the same folder."""
    path = folder.with_name(f".{folder.name}.lock")
    with storage_errors(folder):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run that tokenises the same data", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)  # who waits for it, or makes it anew, finds the folder
    finally:
        os.close(descriptor)


@dataclass
class _State:
    """How far a corpus is written: `place` and `skip` say where reading goes on, the rest what there is before it.

    Attributes:
        place: of the piece whose tokens come next.
        skip: how many of them are written.
        read: bytes of the files that are done.
        tokens: how many are written.
        documents: how many are begun.
        files: the first token of each file up to the present one.
        highest: the highest id so far.
    """

    place: Place = START
    skip: int = 0
    read: int = 0
    tokens: int = 0
    documents: int = 0
    files: list[int] = field(default_factory=list)
    highest: int = 0


def _write(folder: Path, files: Sequence[File], encoder: Encoder, column: str, where: str) -> None:
    """Tokenise into a folder that may hold the beginning of it."""
    state = _load_state(folder)
    size = encoder.dtype.itemsize
    saved = time.monotonic()
    with (
        _opened(folder / _TOKENS, state.tokens * size) as tokens,
        _opened(folder / _STARTS, state.documents * 8) as starts,
        progress("Tokenising", sum(file.size for file in files) - state.read, "B") as advance,
    ):
        for part in tokenise(read_pieces(files, column, state.place), encoder, skip=state.skip):
            if part.place is not None and time.monotonic() - saved > SAVE_SECONDS:
                state.place, state.skip = part.place, part.skip
                _save_state(folder, state, tokens, starts)
                saved = time.monotonic()
            if part.first:
                assert part.place is not None
                if state.documents:
                    tokens.write(_separator(encoder, files[part.place.file].name))
                    state.tokens += 1
                state.files += [state.tokens] * (part.place.file + 1 - len(state.files))
                starts.write(np.int64(state.tokens).tobytes())
                state.documents += 1
            tokens.write(part.ids.tobytes())
            state.tokens += len(part.ids)
            state.highest = max(state.highest, int(part.ids.max(initial=0)))
            state.read += part.advance
            advance(part.advance)
    if not state.tokens:
        raise no_text(where)
    if state.documents > 1:
        state.highest = max(state.highest, encoder.end_of_text or 0)
    state.files += [state.tokens] * (len(files) - len(state.files))
    hashes = hash_file(folder / _TOKENS) + hash_file(folder / _STARTS)
    facts = {
        "dtype": encoder.dtype.name,
        "tokens": state.tokens,
        "documents": state.documents,
        "files": state.files,
        "highest": state.highest,
        "fingerprint": hashlib.sha256(hashes.encode()).hexdigest(),
    }
    write_file(folder / _FACTS, json.dumps(facts))
    (folder / _STATE).unlink(missing_ok=True)


def _opened(file: Path, size: int) -> BinaryIO:
    """A file to write after its first `size` bytes; what is behind them was written after the state was saved."""
    file.touch()
    os.truncate(file, size)
    return file.open("ab")


def _load_state(folder: Path) -> _State:
    file = folder / _STATE
    if not file.exists():
        return _State()
    state = _State(**json.loads(file.read_text(encoding="utf-8")))
    state.place = Place(*state.place)
    return state


def _save_state(folder: Path, state: _State, *files: BinaryIO) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    write_file(folder / _STATE, json.dumps(asdict(state)))


def _separator(encoder: Encoder, where: str) -> bytes:
    if encoder.end_of_text is None:
        raise several_documents(where)
    return np.array(encoder.end_of_text, encoder.dtype).tobytes()
