"""The child process of the llamacpp engine: llama.cpp's own HTTP server on a free loopback port."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from deepen.engine.libllama import read_metadata
from deepen.engine.process import answer, log_tail, request_from_parent
from deepen.errors import CheckpointError, DeepenError


@dataclass(frozen=True)
class Request:
    """What the parent wants served."""

    gguf: Path
    context: int  # tokens; the model's own context if that is shorter
    key: str  # asked of every HTTP request, so that no other user of the machine reads along


@dataclass(frozen=True)
class Ready:
    """What the parent must know to use the server."""

    address: str
    context: int
    has_template: bool


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
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(request.gguf)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [request.key]
    parameters.cors_origins = "localhost"
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.n_ctx = context
    parameters.n_predict = context
    parameters.n_parallel = 1
    parameters.cache_ram_mib = 0  # one conversation at a time: its prefix stays in the slot itself
    parameters.verbosity = 2  # errors and warnings
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:
        raise CheckpointError(
            f"llama.cpp cannot load this model:\n{log_tail(2)}",
            where=request.gguf,
            next="check that the file is complete, and that its architecture is one that llama.cpp knows",
        ) from None
    return server, Ready(server.listening_address, context, metadata.has_template)
