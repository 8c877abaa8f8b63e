"""Serve a model over HTTP: OpenAI's protocol, a web page, metrics."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from deepen.apps.support import open_library
from deepen.checkpoint import resolve
from deepen.engine.draft import AUTO, keep_faster
from deepen.engine.llamacpp import LlamacppEngine, start_server
from deepen.errors import MissingDependencyError, OptionError
from deepen.prepare import given, prepare_draft, prepare_gguf, refuse
from deepen.serve.apps import Apps
from deepen.serve.front import Front, Limits
from deepen.serve.pages import Pages
from deepen.serve.vllm import vllm_command
from deepen.serve.work import House
from deepen.units import parse_bytes

__all__ = ["Address", "serve"]

_SECONDS_TO_FINISH = 30.0
_POLLS_TO_TELL = 20  # those who still wait that the server ends


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        url: its root, with the web page; OpenAI's protocol is under `url` + `/v1`, the applications under `url` + `/apps/`.
        model: the model's name in requests.
        context: tokens of each conversation.
        parallel: conversations at once.
        api_key: the key that was made because none was given, else None.
    """

    url: str
    model: str
    context: int
    parallel: int
    api_key: str | None


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    engine: str = "auto",
    api_key: Sequence[str] = (),
    api_key_file: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    parallel: int = 4,
    context: int | None = None,
    quantize: str | None = None,
    draft: str | Path | None = None,
    max_new_tokens: int = 2048,
    max_body: str | int = "8MB",
    max_seconds: float = 600.0,
    execute: bool = False,
    docs: Sequence[str | Path] | str | Path = (),
    material: Sequence[str | Path] | str | Path = (),
    on_ready: Callable[[Address], None] | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
) -> None:
    """Serve a model and the applications until SIGTERM or Ctrl-C; requests at work are then finished, for at most 30 seconds.

    Args:
        model: a GGUF file, or a checkpoint folder or Hub id (exported once, into the cache).
        host: address to listen on. Any but the loopback interface asks for a key; without one, a key is made.
        port: port to listen on; 0 takes a free one.
        engine: `llamacpp` (`auto` is the same), or `vllm`: print the command that serves the model with vLLM.
        api_key: keys, any of which opens the server.
        api_key_file: a file of keys, one a line.
        tls_cert: certificate chain (PEM), for HTTPS.
        tls_key: its private key.
        parallel: conversations at once; each has the whole `context`.
        context: tokens of each conversation; what fits into memory, at most 8192, unless given.
        quantize: the format in which a checkpoint is served; Q8_0 unless given.
        draft: guesses the next tokens, which the model checks at once: a smaller model of the same vocabulary, `ngram` for the
            text so far, or `auto` for the model's base or else `ngram`, if it is faster on a first answer.
        max_new_tokens: longest answer.
        max_body: largest request.
        max_seconds: longest time for an answer.
        execute: with `engine="vllm"`, start the command in the place of this process.
        docs: folders and files of documents from which `support` answers; it is off without.
        material: folders and files of documents from which the tutor makes exercises, where the topic is no arithmetic.
        on_ready: called when the model is loaded.
        drop: layer plan, as in `scale`: the deepened model is served from a GGUF in the cache. So do the next five.
        layers: slices of layers.
        repeat: a range of layers to run again.
        expand: a number of new blocks.
        plan: a plan file.
        identity_init: repeated layers start as the identity.

    Raises:
        DataError: none of the documents can be read.
        OptionError: a port in use, an address or a file of keys or certificates that does not work.
        ResourceError: the model and its conversations do not fit into memory.
    """
    for option, value in (("--parallel", parallel), ("--max-new-tokens", max_new_tokens), ("--max-seconds", max_seconds)):
        if not value > 0:
            raise OptionError(f"{value} is too small", where=option, next="use 1 or more")
    keys = _keys(api_key, api_key_file)
    loopback = _is_loopback(host)
    made = None if keys or loopback else secrets.token_urlsafe(24)
    keys = (made,) if made else keys
    places = [docs] if isinstance(docs, str | Path) else docs
    taught = [material] if isinstance(material, str | Path) else material
    options = given(drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init)
    if engine == "vllm":
        refuse("vLLM", quantize=quantize, draft=draft, plan=options, docs=list(places), material=list(taught))
        _vllm(vllm_command(model, host=host, port=port, keys=keys, context=context, parallel=parallel), execute=execute)
        return
    if engine not in {"auto", "llamacpp"}:
        raise OptionError(f"{engine!r} does not serve", where="--engine", next="use auto, llamacpp or vllm")
    tls = _tls(tls_cert, tls_key)
    path = resolve(model)
    library = open_library(path, places) if places else None
    lessons = open_library(path, taught, option="--material") if taught else None
    guess = prepare_draft(path, plan=options, draft=draft)
    gguf, tokens = prepare_gguf(path, plan=options, quantize=quantize, context=context, parallel=parallel, draft=guess)
    if draft == AUTO:
        drafting = LlamacppEngine(gguf, context=tokens, draft=guess)
        with closing(keep_faster(drafting)) as kept:
            guess = guess if kept is drafting else None
    name = path.stem if path.is_file() else path.resolve().name
    limits = Limits(max_new_tokens, parse_bytes(max_body), max_seconds)
    start = partial(start_server, gguf, context=tokens, name=name, parallel=parallel, public=True, draft=guess)
    apps = Apps(House(max_new_tokens, parallel, library, lessons))
    front = Front(start, limits, keys, loopback, apps, Pages())
    address = Address("", name, tokens, parallel, made)
    asyncio.run(_run(front, host, port, tls, address, on_ready))


async def _run(
    front: Front, host: str, port: int, tls: ssl.SSLContext | None, address: Address, on_ready: Callable[[Address], None] | None
) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    try:
        server = await asyncio.start_server(front.connected, host, port, ssl=tls, limit=32 << 10)
    except OSError as error:
        raise OptionError(
            f"cannot listen on {host}:{port} ({error.strerror or error})",
            where="--port",
            next="choose another --port or --host",
        ) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loading, stopping = asyncio.ensure_future(front.load()), asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            number = server.sockets[0].getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            ready = Address(f"{'https' if tls else 'http'}://{shown}:{number}", *list(vars(address).values())[1:])
            if on_ready:
                on_ready(ready)
            await stopped.wait()
        server.close()
        deadline = loop.time() + _SECONDS_TO_FINISH
        while front.running and loop.time() < deadline:
            await asyncio.sleep(0.05)
    finally:
        server.close()
        stopping.cancel()
        if not loading.done():
            await asyncio.wait({loading})
        await asyncio.to_thread(front.apps.close)
        for _ in range(_POLLS_TO_TELL):
            if not front.running:
                break
            await asyncio.sleep(0.05)
        if front.engine is not None:
            front.engine.close()


def _vllm(words: list[str], *, execute: bool) -> None:
    if not execute:
        print(shlex.join(words))
        return
    if shutil.which("vllm") is None:
        raise MissingDependencyError(
            "vLLM is not in this environment", next="install it in an environment of its own, and run the command there"
        )
    sys.stdout.flush()
    os.execvp(words[0], words)  # noqa: S606  the very purpose of --exec


def _keys(given: Sequence[str], file: str | Path | None) -> tuple[str, ...]:
    lines = Path(file).read_text(encoding="utf-8").splitlines() if file is not None else []
    keys = (*given, *(line.strip() for line in lines if line.strip()))
    if (file is not None and not keys) or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise OptionError("keys are printable ASCII without spaces, one a line", where=file or "--api-key", next="correct it")
    return keys


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(certificate: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise OptionError("HTTPS needs both", where="--tls-cert, --tls-key", next="give the certificate and its private key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise OptionError(
            f"the certificate cannot be loaded ({error})", where=certificate, next="give PEM files that belong together"
        ) from error
    return context
