"""The child process of the llamacpp engine: llama.cpp's own HTTP server on a free loopback port."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.engine.draft import NGRAM
from deepen.engine.libllama import read_metadata
from deepen.engine.process import answer, log_tail, request_from_parent, thread_count
from deepen.engine.tool_template import with_tools
from deepen.errors import CheckpointError, DeepenError, MissingDependencyError

_CACHE_MIB = 512  # of keys and values of earlier prompts


@dataclass(frozen=True)
class Request:
    """What the parent wants served."""

    gguf: Path
    context: int  # tokens of each conversation; the model's own context if that is shorter
    key: str  # asked of every HTTP request, so that no other user of the machine reads along
    name: str = ""  # of the model, in answers; the file's unless given
    parallel: int = 1  # conversations at once
    public: bool = False  # for people: the web page, metrics and embeddings, and prompts kept for the next request
    threads: int | None = None  # to compute with; `thread_count()` unless given
    draft: Path | str | None = None  # a GGUF that guesses the next tokens, or `ngram`
    alike: bool = False  # one of several processes that run the same file: its weights are held once


@dataclass(frozen=True)
class Ready:
    """What the parent must know to use the server."""

    address: str
    context: int
    has_template: bool
    uses_gpu: bool


def main() -> None:
    """Serve until the parent ends."""
    request, answers = request_from_parent()
    try:
        server, ready = _serve(request)
    except DeepenError as error:
        answer(answers, error)
        return
    answer(answers, ready)
    threading.Event().wait()
    del server  # dropping the server would stop it


def _serve(request: Request) -> tuple[object, Ready]:
    import xllamacpp

    metadata = read_metadata(request.gguf)
    context = min(request.context, metadata.context)
    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    uses_gpu = any(device["type"] != cpu for device in xllamacpp.get_device_info())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(request.gguf)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [request.key]
    parameters.cors_origins = "localhost"
    parameters.endpoint_slots = False
    parameters.model_alias = {request.name or request.gguf.stem}  # else answers would name the file with its whole path
    parameters.ui = parameters.endpoint_metrics = parameters.embedding = request.public
    parameters.n_ctx = context * request.parallel
    parameters.n_predict = context
    parameters.fit_params = uses_gpu  # how many layers it holds; to find out, llama.cpp loads the model once more
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = request.threads or thread_count()
    parameters.no_extra_bufts = request.alike  # weights in another order would be a copy of one's own
    parameters.n_parallel = request.parallel
    if metadata.template is not None and (shown := with_tools(metadata.template)) != metadata.template:
        parameters.chat_template = shown
    if request.public:
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # an embedding is computed in one batch; llama.cpp fails on a batch that the conversations do not divide
        batch = max(min(context, parameters.n_batch), parameters.n_ubatch)
        parameters.n_ubatch = parameters.n_batch = batch + -batch % request.parallel
    parameters.cache_ram_mib = _CACHE_MIB if request.public else 0  # alone, a conversation stays in its slot
    if request.draft is not None:
        _draft(parameters, request.draft, request.threads or thread_count())
    parameters.verbosity = 2  # errors and warnings
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:
        raise CheckpointError(
            f"llama.cpp cannot load this model:\n{log_tail(2)}",
            where=request.gguf,
            next="check that the file is complete, and that its architecture is one that llama.cpp knows",
        ) from None
    return server, Ready(server.listening_address, context, metadata.template is not None, uses_gpu)


def _draft(parameters: Any, draft: Path | str, threads: int) -> None:
    """Let a model, or the text so far, guess the next tokens. The wheel's names for this change with llama.cpp's."""
    import xllamacpp

    try:
        kinds, speculative = xllamacpp.common_speculative_type, parameters.speculative
        if draft == NGRAM:
            speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            return
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = str(draft)
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = threads
    except AttributeError as error:
        raise MissingDependencyError(
            f"this build of xllamacpp has other names for drafts ({error})",
            where="--draft",
            next="leave --draft away, or pip install 'deepen[run]' in a fresh environment",
        ) from error
