"""llama.cpp's C interface, called with ctypes out of the xllamacpp wheel: token log-likelihoods of a GGUF, and GGUF metadata.

The wheel's server gives no log-probabilities of a prompt, but its extension module exports the C functions. The structures
`llama_model_params` and `llama_context_params` go by value and change from version to version, so they are opaque blobs here,
larger than any of them: returned through a hidden pointer, and passed as the last argument, where the callee reads only its own
length (both hold for the calling conventions of x86-64 System V and AArch64). Only the first four fields of the context
parameters, unchanged for years, are set, and only if their defaults read as expected.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.engine.process import Child, answer, log_tail, request_from_parent, require_xllamacpp, start, thread_count
from deepen.errors import CheckpointError, DataError, DeepenError, MachineError, MissingDependencyError
from deepen.progress import progress

if TYPE_CHECKING:  # the server's child wants only the metadata, and no time lost
    import numpy as np
    from numpy.typing import NDArray

Run = tuple[list[int], int, int, list[tuple[int, ...]]]
"""See `scored_runs`."""

_BATCH = 512  # tokens decoded at once: bounds the logits held at once, whatever the length of a window
_CONTEXT_DEFAULTS = (512, 2048, 512, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max


class _Parameters(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 512),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _GgufParameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {  # name: (result, arguments)
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (_Parameters, ()),
    "llama_context_default_params": (_Parameters, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, _Parameters)),
    "llama_init_from_model": (_POINTER, (_POINTER, _Parameters)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_n_ctx_train": (_INT, (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_memory_seq_rm": (ctypes.c_bool, (_POINTER, _INT, _INT, _INT)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_batch_init": (_Batch, (_INT, _INT, _INT)),
    "llama_decode": (_INT, (_POINTER, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
    "gguf_init_from_file": (_POINTER, (ctypes.c_char_p, _GgufParameters)),
    "gguf_free": (None, (_POINTER,)),
    "gguf_find_key": (ctypes.c_int64, (_POINTER, ctypes.c_char_p)),
    "gguf_get_val_str": (ctypes.c_char_p, (_POINTER, ctypes.c_int64)),
    "gguf_get_val_u32": (ctypes.c_uint32, (_POINTER, ctypes.c_int64)),
}


@dataclass(frozen=True)
class Metadata:
    """What an engine must know of a GGUF before it is loaded."""

    context: int  # tokens that the model was trained for
    template: str | None  # for chats


def window_log_likelihoods(gguf: Path, windows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Natural-log probability that llama.cpp gives each token of each window after the ones before it.

    Runs in a child process and shows its progress.

    Args:
        gguf: the model file.
        windows: token ids; every window starts with an empty context, and its first token is given, not scored.

    Returns:
        For each window of length w, w - 1 log-probabilities: a log-softmax of the logits in float64.

    Raises:
        DataError: a window is longer than the model's context or holds an id outside its vocabulary.
        CheckpointError: llama.cpp refuses the file.
        MissingDependencyError: xllamacpp is not installed, or its build lacks the expected C interface.
        MachineError: llama.cpp died.
    """
    require_xllamacpp()
    plain = [[int(token) for token in window] for window in windows]
    results: list[list[float]] = []
    with (
        closing(start("deepen.engine.libllama", gguf, (str(gguf), plain, False))) as child,
        progress("Scoring in llama.cpp", sum(map(len, plain)), "tokens") as advance,
    ):
        for window in plain:
            row = child.receive()
            assert isinstance(row, list)
            results.append(row)
            advance(len(window))
    return results


def start_distributions(gguf: Path, windows: Sequence[Sequence[int]]) -> Child:
    """A child that answers, for each window and each of its tokens but the last, with what follows that token.

    Each answer is an array of float32, the natural-log probability of every token of the vocabulary; or the child answers with
    an error, as in `window_log_likelihoods`.
    """
    require_xllamacpp()
    return start("deepen.engine.libllama", gguf, (str(gguf), [list(map(int, window)) for window in windows], True))


def scored_runs(gguf: Path, runs: Sequence[Run]) -> Iterator[list[tuple[float, bool]]]:
    """How likely continuations are, in a child process that keeps what one sequence has in common with the next.

    Args:
        gguf: the model file.
        runs: for each sequence its tokens; how many of them the sequence before left in the model's memory; the place whose
            token predicts the first that is asked for; and continuations that end with the token after the sequence.

    Yields:
        For each run, for each continuation, its natural-log probability and whether each of its tokens is the likeliest.

    Raises:
        DataError, CheckpointError, MissingDependencyError, MachineError: as `window_log_likelihoods`.
    """
    require_xllamacpp()
    with closing(start("deepen.engine.libllama", gguf, (str(gguf), list(runs), None))) as child:
        for _ in runs:
            row = child.receive()
            assert isinstance(row, list)
            yield row


def main() -> None:
    """The child: answer with the log-probabilities of each window's tokens, or with whole distributions, or with an error."""
    (path, windows, whole), answers = request_from_parent()
    try:
        if whole is None:
            for scored in _score_runs(Path(path), windows):
                answer(answers, scored)
            return
        for window, distributions in _windows(Path(path), windows):
            row = []
            for following, distribution in zip(window[1:], distributions, strict=True):
                if whole:
                    answer(answers, distribution.astype("float32"))
                else:
                    row.append(float(distribution[following]))
            if not whole:
                answer(answers, row)
    except DeepenError as error:
        answer(answers, error)


def read_metadata(gguf: Path) -> Metadata:
    """Read a GGUF's header with llama.cpp's own reader. Call it in a child process only.

    Raises:
        CheckpointError: the file is not a GGUF, or is cut or inconsistent.
    """
    library = _library()
    file = library.gguf_init_from_file(os.fsencode(gguf), _GgufParameters(no_alloc=True, context=None))
    if not file:
        raise _refused(gguf)
    try:
        architecture = library.gguf_find_key(file, b"general.architecture")
        if architecture < 0:
            raise CheckpointError("the GGUF names no architecture", where=gguf, next="this is not a language model")
        context = library.gguf_find_key(file, library.gguf_get_val_str(file, architecture) + b".context_length")
        if context < 0:
            raise CheckpointError("the GGUF has no context length", where=gguf, next="convert the model again")
        template = library.gguf_find_key(file, b"tokenizer.chat_template")
        return Metadata(
            context=library.gguf_get_val_u32(file, context),
            template=None if template < 0 else library.gguf_get_val_str(file, template).decode(errors="replace"),
        )
    finally:
        library.gguf_free(file)


def _score_runs(gguf: Path, runs: list[Run]) -> Iterator[list[tuple[float, bool]]]:
    """See `scored_runs`."""
    model = _open(gguf, [run[0] for run in runs])
    for tokens, kept, first, asked in runs:
        rows = list(model.distributions(tokens, kept, first))
        scored = []
        for continuation in asked:
            part = rows[len(rows) - len(continuation) :]
            pairs = list(zip(part, continuation, strict=True))
            total = sum(float(row[token]) for row, token in pairs)
            scored.append((total, all(int(row.argmax()) == token for row, token in pairs)))
        yield scored


def _windows(gguf: Path, windows: list[list[int]]) -> Iterator[tuple[list[int], Iterator[NDArray[np.float64]]]]:
    """Each window with the log-softmax after each of its tokens but the last."""
    model = _open(gguf, windows)
    for window in windows:
        yield window, model.distributions(window[:-1], 0, 0)


@dataclass(frozen=True)
class _Model:
    """A model in this process, with a context for one sequence."""

    library: ctypes.CDLL
    context: int
    memory: int
    batch: _Batch
    vocabulary: int

    def distributions(self, tokens: list[int], kept: int, first: int) -> Iterator[NDArray[np.float64]]:
        """The log-softmax after each token from `first` on; the first `kept` tokens are those of the sequence before."""
        import numpy as np

        if not kept or not self.library.llama_memory_seq_rm(self.memory, 0, kept, -1):
            self.library.llama_memory_clear(self.memory, True)  # a recurrent state cannot be cut
            kept = 0
        for begin in range(kept, len(tokens), _BATCH):
            end = min(begin + _BATCH, len(tokens))
            _decode(self.library, self.context, self.batch, tokens[begin:end], begin, first)
            for place in range(max(begin, first), end):
                logits = np.ctypeslib.as_array(
                    self.library.llama_get_logits_ith(self.context, place - begin), (self.vocabulary,)
                )
                yield _log_softmax(logits.astype(np.float64))


def _open(gguf: Path, windows: list[list[int]]) -> _Model:
    """Load a model for windows that are checked against it."""
    library = _library()
    library.llama_backend_init()
    model = library.llama_model_load_from_file(os.fsencode(gguf), library.llama_model_default_params())
    if not model:
        raise _refused(gguf)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    longest = max(map(len, windows), default=1)
    _check_windows(gguf, windows, longest, context=library.llama_model_n_ctx_train(model), vocabulary=vocabulary)

    parameters = library.llama_context_default_params()
    parameters.words[0:4] = [longest, _BATCH, _BATCH, 1]
    context = library.llama_init_from_model(model, parameters)
    if not context:
        raise MachineError(f"llama.cpp cannot make a context of {longest} tokens:\n{log_tail(2)}", where=gguf)
    threads = thread_count()
    library.llama_set_n_threads(context, threads, threads)
    return _Model(library, context, library.llama_get_memory(context), library.llama_batch_init(_BATCH, 0, 1), vocabulary)


def _decode(library: ctypes.CDLL, context: int, batch: _Batch, tokens: list[int], position: int, first: int) -> None:
    """Run tokens from a position on; those from place `first` on give logits."""
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, position + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = position + index >= first
    code = library.llama_decode(context, batch)
    if code != 0:
        raise MachineError(f"llama.cpp cannot evaluate the tokens (llama_decode returned {code}):\n{log_tail(2)}")


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    shifted = logits - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _check_windows(gguf: Path, windows: list[list[int]], longest: int, *, context: int, vocabulary: int) -> None:
    if longest > context:
        raise DataError(
            f"a window has {longest} tokens, but the model's context holds {context}",
            where=gguf,
            next=f"use windows of at most {context} tokens",
        )
    for window in windows:
        for token in window:
            if not 0 <= token < vocabulary:
                raise DataError(
                    f"token {token} is outside the model's vocabulary of {vocabulary}",
                    where=gguf,
                    next="tokenise with this model's own tokenizer",
                )


def _library() -> ctypes.CDLL:
    """The shared library, with the signatures of the functions that are used here, checked against what is expected."""
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    try:
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise _unexpected(f"its library lacks {name}") from error
    defaults = tuple(library.llama_context_default_params().words[0:4])
    if defaults != _CONTEXT_DEFAULTS:
        raise _unexpected(f"its context parameters start with {defaults}, not {_CONTEXT_DEFAULTS}")
    return library


def _unexpected(what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"this build of xllamacpp has another C interface than the one deepen knows: {what}",
        next="pip install 'deepen[run]' in a fresh environment for the version that deepen was tested with",
    )


def _refused(gguf: Path) -> CheckpointError:
    return CheckpointError(
        f"llama.cpp refuses this file:\n{log_tail(2)}", where=gguf, next="check that the file is a complete GGUF model"
    )
