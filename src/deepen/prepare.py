"""From a model's name to a running engine: which engine and why, what memory it takes, and the GGUF it runs on, made once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepen.checkpoint import open_checkpoint, resolve
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.doctor import doctor
from deepen.engine import Engine
from deepen.engine.draft import AUTO, NGRAM, check_vocabulary, depth, find_base, same_vocabulary
from deepen.engine.llamacpp import CONTEXT
from deepen.errors import (
    CheckpointError,
    OptionError,
    PlanError,
    ResourceError,
    UnsupportedModelError,
    printable,
)
from deepen.host import host_memory
from deepen.model import BITS
from deepen.output import cache_folder
from deepen.plan import describe, parse_plan
from deepen.units import format_bytes

ENGINES = ("auto", "llamacpp", "transformers")
QUANTIZE = "Q8_0"
"""What a checkpoint is exported as, to run on a CPU: hardly different from its source, and a quarter of float32."""

_SMALLER = "Q4_K_M"  # where Q8_0 does not fit into memory
_SHORTEST_CONTEXT = 1024
_SPARE = 256 << 20  # for what an engine computes in; a tenth of the rest if that is more


@dataclass(frozen=True)
class Memory:
    """What a model will take, and what there is.

    Attributes:
        weights_bytes: the model.
        cache_bytes: keys and values of all tokens of all conversations at once.
        tokens: how many tokens that is.
        free_bytes: what the machine has left.
    """

    weights_bytes: int
    cache_bytes: int
    tokens: int
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Weights, cache and something to spare."""
        return self.weights_bytes + self.cache_bytes + self.spare_bytes

    @property
    def spare_bytes(self) -> int:
        """For what an engine computes in."""
        return max(_SPARE, (self.weights_bytes + self.cache_bytes) // 10)

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.weights_bytes)} weights + {format_bytes(self.cache_bytes)} cache for {self.tokens} tokens"
            f" + {format_bytes(self.spare_bytes)} spare = {format_bytes(self.needed_bytes)}"
            f" of {format_bytes(self.free_bytes)} free"
        )


def open_engine(
    model: str | Path,
    *,
    engine: str = "auto",
    plan: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    context: int | None = None,
    quantize: str | None = None,
    draft: str | Path | None = None,
) -> Engine:
    """Load a model into the engine that suits it, and say on stderr which that is and why, and what memory it takes.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file; a model's name there if `engine` is a URL.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        plan: plan options (`drop`, `layers`, …): the deepened model runs without being written (llamacpp: once, to the cache).
        device: where `transformers` puts the model, such as `cpu` or `cuda:0`; `auto` for GPUs and main memory together.
        dtype: the dtype that `transformers` computes in, such as `float32`.
        context: hold at most so many tokens (`llamacpp`; default: the model's context, at most 8192).
        quantize: the format in which `llamacpp` runs a checkpoint, such as `Q4_K_M` (default: `Q8_0`); `transformers` has
            `4bit` and `8bit`.
        draft: what guesses the next tokens: a model of the same vocabulary, `ngram` for the text so far, or `auto` for the base
            of the model if it is known, else `ngram`.

    Raises:
        OptionError: an unknown engine, or an option that the engine does not have; a draft of another vocabulary.
        ResourceError: the memory does not suffice.
        CheckpointError: the model is missing or broken.
        MissingDependencyError: the engine is not installed.
    """
    if "://" in engine:
        refuse("a server behind a URL", plan=plan, device=device, dtype=dtype, context=context, quantize=quantize, draft=draft)
        from deepen.engine.openai import OpenAIEngine

        _say("openai", engine)
        return OpenAIEngine(engine, str(model))
    if engine not in ENGINES:
        raise OptionError(
            f"{engine!r} is not an engine", where="--engine", next=f"use one of {', '.join(ENGINES)}, or a URL such as http://…"
        )
    path = resolve(model)
    guess = _draft(path, plan, draft)
    chosen, reason = engine, "asked for"
    if engine == "auto":
        chosen, reason = choose(path, plan=plan, device=device, dtype=dtype, quantize=quantize)
    if chosen == "llamacpp":
        refuse("llama.cpp, which runs where it was built for in the number format of the file,", device=device, dtype=dtype)
        from deepen.engine.llamacpp import LlamacppEngine
        from deepen.engine.process import require_xllamacpp

        require_xllamacpp()
        _say(chosen, reason)
        guess = _runnable(guess)
        # to be measured, conversations with and without a draft are held at once
        parallel = 2 if draft == AUTO else 1
        gguf, tokens = prepare_gguf(path, plan=plan, quantize=quantize, context=context, parallel=parallel, draft=guess)
        return LlamacppEngine(gguf, context=tokens, draft=guess)
    refuse("the engine transformers", context=context, quantize=None if quantize in BITS else quantize)
    from deepen.engine.transformers import TransformersEngine

    _say(chosen, reason)
    if path.is_dir() and (device or "cpu") == "cpu" and quantize is None:
        beside = None if guess == path else guess  # a base shares its weights with its deepened self
        _require(_memory(path, plan, 0, beside), path, "export it: --engine llamacpp --quantize Q4_K_M")
    device = device or _gpu_device(reason)
    return TransformersEngine(model, plan=plan, device=device, dtype=dtype, quantize=quantize, draft=guess)


def prepare_gguf(
    path: Path,
    *,
    plan: Mapping[str, Any] | None,
    quantize: str | None,
    context: int | None,
    parallel: int = 1,
    draft: Path | str | None = None,
) -> tuple[Path, int]:
    """The GGUF that llama.cpp shall run, made in the cache where it must be, and the context that fits into memory.

    Args:
        path: a checkpoint folder or a GGUF file.
        plan: plan options, or nothing.
        quantize: the format of the GGUF of a checkpoint; one that fits unless given.
        context: tokens of each conversation; what fits, at most 8192, unless given.
        parallel: how many conversations at once.
        draft: a model that is loaded beside it.

    Raises:
        OptionError: a GGUF would have to be quantised again.
        ResourceError: it does not fit into memory; the message has the numbers.
        UnsupportedModelError: the checkpoint cannot be exported, or the plan not be applied.
    """
    if path.is_file():
        refuse("a GGUF, which has its format already,", quantize=quantize)
    elif quantize is None:
        quantize = _quantization(path)
    gguf = path if path.is_file() else _exported(path, str(quantize).upper())
    if plan:
        gguf = _scaled(gguf, plan)
    longest = _longest_context(gguf)
    tokens = min(context or CONTEXT, longest)
    memory = _memory(gguf, None, tokens * parallel, draft)
    while memory and context is None and memory.needed_bytes > memory.free_bytes and tokens > _SHORTEST_CONTEXT:
        tokens //= 2
        memory = _memory(gguf, None, tokens * parallel, draft)
    _require(memory, gguf, "use a smaller format (--quantize Q4_K_M), fewer --context tokens or a smaller model")
    if context is None and tokens < min(CONTEXT, longest):
        print(f"Context: {tokens} tokens, since the memory does not hold more", file=sys.stderr)
    return gguf, tokens


def prepare_draft(path: Path, *, plan: Mapping[str, Any] | None, draft: str | Path | None) -> Path | str | None:
    """What guesses the next tokens of a model in llama.cpp: a GGUF, made in the cache where it must be, or `ngram`, or nothing.

    Args:
        path: the model.
        plan: its plan options, or nothing.
        draft: as for `open_engine`.

    Raises:
        OptionError: a draft of another vocabulary.
    """
    return _runnable(_draft(path, plan, draft))


def conversations(gguf: Path, context: int, most: int) -> int:
    """How many conversations of `context` tokens fit into memory at once: `most`, or a half, a quarter … of it, but one."""
    while most > 1 and (memory := _memory(gguf, None, context * most)) and memory.needed_bytes > memory.free_bytes:
        most //= 2
    return most


def refuse(what: str, **options: object) -> None:
    """Refuse options that mean nothing to `what`.

    Raises:
        OptionError: one of them is given.
    """
    for name, value in options.items():
        if value:
            option = next(iter(value)) if isinstance(value, Mapping) else name
            option = f"--{str(option).replace('_', '-')}"
            raise OptionError(f"{option} does not apply to {what}", where=option, next=f"leave {option} away")


def given(**options: object) -> dict[str, Any]:
    """Those of some options that are given: neither None nor False."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def choose(
    path: Path, *, plan: Mapping[str, Any] | None, device: str | None, dtype: str | None, quantize: str | None
) -> tuple[str, str]:
    """The engine for a model, and why, in a few words."""
    if path.is_file():
        return "llamacpp", "a GGUF file"
    if quantize:
        return "transformers" if quantize in BITS else "llamacpp", f"--quantize {quantize}"
    if device or dtype:
        return "transformers", "--device" if device else "--dtype"
    if plan:
        return "transformers", "a layer plan over shared weights"
    if _gpu_room(path):
        return "transformers", "a GPU with room for it"
    if lacking := next((name for name in ("xllamacpp", "gguf") if find_spec(name) is None), None):
        return "transformers", f"a checkpoint folder, and {lacking} is not installed"
    try:
        from deepen.export.llama import read_shape
        from deepen.export.vocabulary import read_vocabulary

        checkpoint = open_checkpoint(path)
        read_vocabulary(path, read_shape(checkpoint).vocabulary, checkpoint.config)
    except (UnsupportedModelError, CheckpointError) as error:
        return "transformers", f"a checkpoint that is not exported: {error.what}"
    return "llamacpp", "a checkpoint on the CPU"


def _gpu_room(path: Path) -> bool:
    """Whether the first GPU has room for the weights of a folder and as much again as half of them."""
    if not doctor()["gpus"] or find_spec("torch") is None:
        return False
    import torch

    if not torch.cuda.is_available():
        return False
    free, _ = torch.cuda.mem_get_info()
    return sum(tensor.nbytes for tensor in open_checkpoint(path).tensors.values()) * 1.5 < free


def _gpu_device(reason: str) -> str | None:
    return "cuda" if reason.startswith("a GPU") else None


def _memory(path: Path, plan: Mapping[str, Any] | None, tokens: int, draft: Path | str | None = None) -> Memory | None:
    """What a model and its draft take; None if its sizes are not known."""
    with suppress(UnsupportedModelError, PlanError):
        base = describe(path, layers=f"0:{depth(path)}")
        # shared layers take no memory of their own, but their keys and values do
        cache = describe(path, **plan)["kv_bytes_per_token"] if plan else base["kv_bytes_per_token"]
        memory = Memory(base["weight_bytes"], cache * tokens, tokens, host_memory().available)
        beside = _memory(draft, None, tokens) if isinstance(draft, Path) else None
        if beside is None:
            return memory
        weights, cached = memory.weights_bytes + beside.weights_bytes, memory.cache_bytes + beside.cache_bytes
        return replace(memory, weights_bytes=weights, cache_bytes=cached)
    return None


def _draft(path: Path, plan: Mapping[str, Any] | None, asked: str | Path | None) -> Path | str | None:
    """What guesses the next tokens of a model: a model, or `ngram`; nothing unless asked for."""
    if asked is None or asked == NGRAM:
        return asked
    if asked != AUTO:
        draft = resolve(asked)
        check_vocabulary(path, draft)
        return draft
    base = path if plan else find_base(path)
    return base if base is not None and same_vocabulary(path, base) else NGRAM


def _runnable(draft: Path | str | None) -> Path | str | None:
    """A draft that llama.cpp runs."""
    return _exported(draft, _SMALLER) if isinstance(draft, Path) and draft.is_dir() else draft


def _require(memory: Memory | None, path: Path, advice: str) -> None:
    if memory is None:
        print("Memory: not known for this architecture", file=sys.stderr)
        return
    if memory.needed_bytes > memory.free_bytes:
        raise ResourceError(f"the model does not fit into memory: {memory}", where=path, next=advice)
    print(f"Memory: {memory}", file=sys.stderr)


def _quantization(path: Path) -> str:
    """Q8_0, or Q4_K_M where the memory does not hold it; one is said aloud."""
    weights = sum(tensor.parameters for tensor in open_checkpoint(path).tensors.values())
    free = host_memory().available
    if weights * 1.1 + _SPARE <= free:
        return QUANTIZE
    print(f"Format: {_SMALLER}, since {QUANTIZE} does not fit into {format_bytes(free)} of free memory", file=sys.stderr)
    return _SMALLER


def _exported(folder: Path, quantize: str) -> Path:
    from deepen.export import export

    out = cache_folder() / f"{folder.resolve().name}-{quantize}-{fingerprint(folder, quantize)}.gguf"
    if not out.is_file():
        print(f"The model is exported once, into the cache: {printable(out)}", file=sys.stderr)
        export(folder, out, quantize=quantize)
    return out


def _scaled(gguf: Path, plan: Mapping[str, Any]) -> Path:
    from deepen.scale import scale

    meaning = parse_plan(depth(gguf), **plan)
    name = f"{gguf.stem}-{meaning.num_hidden_layers}-layers"
    out = cache_folder() / f"{name}-{fingerprint(gguf, f'{meaning.layers} {meaning.identity}')}.gguf"
    if not out.is_file():
        print(f"The deepened GGUF is made once, in the cache, by byte copies: {printable(out)}", file=sys.stderr)
        scale(gguf, out, **plan)
    return out


def fingerprint(path: Path, made: str) -> str:
    """Changes with every file of the model, and with what is made of it."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((made, facts)).encode()).hexdigest()[:16]


def _longest_context(gguf: Path) -> int:
    if not is_gguf(gguf):
        return CONTEXT  # llama.cpp says what is wrong with it
    header = open_gguf(gguf)
    found = header.get(f"{header.get('general.architecture')}.context_length")
    return found if isinstance(found, int) and found > 0 else CONTEXT


def _say(engine: str, reason: str) -> None:
    print(f"Engine: {engine} ({printable(reason)})", file=sys.stderr)
