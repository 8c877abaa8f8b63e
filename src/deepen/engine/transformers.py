"""The engine for checkpoint folders: a transformers model in this process, with or without a virtual layer plan."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.engine.draft import NGRAM
from deepen.engine.protocol import TOP_K, TOP_P, Chunk, FinishReason, Message, Prompt, new_tokens
from deepen.engine.text import Detokenizer, StopStrings
from deepen.errors import CheckpointError, MissingDependencyError, UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LOOKUP_TOKENS = 10  # that the text so far guesses
_CONTEXT_TOKENS = 8  # the end of the prompt, decoded with the answer: some tokenizers drop the space before a first word


class TransformersEngine:
    """A transformers model; see `Engine` for what the methods do.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file (which is decoded).
        plan: plan options for a virtual deepened model.
        device: such as `cpu` or `cuda:0`; `auto` for GPUs and main memory together.
        dtype: such as `float32`.
        quantize: `4bit` or `8bit`.
        draft: a model that guesses the next tokens, or `ngram` for the text so far.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        CheckpointError: the model is broken or has no tokenizer.
    """

    name = "transformers"

    def __init__(
        self,
        model: str | Path,
        *,
        plan: Mapping[str, Any] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        draft: Path | str | None = None,
    ) -> None:
        for package in ("torch", "transformers"):
            if find_spec(package) is None:
                raise MissingDependencyError(
                    f"the engine transformers needs the package {package}", next="pip install 'deepen[run]'"
                )
        from transformers import GenerationConfig

        from deepen.model import load

        self._source = model
        self._model, tokenizer = load(model, plan or None, dtype=dtype, device=device, quantize=quantize)
        if tokenizer is None:
            raise CheckpointError("the model has no tokenizer", where=model, next="add the tokenizer files of its base")
        self._tokenizer = tokenizer
        ends = self._model.generation_config.eos_token_id
        self._ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        # generate() would mix the checkpoint's sampling settings into ours, and warn where the two do not fit together
        self._model.generation_config = GenerationConfig()
        self._draft: PreTrainedModel | str | None = draft if draft is None or draft == NGRAM else None
        if draft is not None and draft != NGRAM:
            guessing, _ = load(draft, dtype=dtype, device=device)
            guessing.generation_config = GenerationConfig()
            self._draft = guessing
        self.context: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.has_template = self._tokenizer.chat_template is not None
        self.uses_gpu: bool | None = self._model.device.type == "cuda"

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added."""
        return self._tokenize(text, add_special=False)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for the next answer of a conversation, by the model's chat template."""
        from jinja2 import TemplateError

        if not self.has_template:
            raise UnsupportedModelError("the model has no chat template", where=self._source, next="use --raw")
        try:
            prompt: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UnsupportedModelError(
                f"the model's chat template cannot render this conversation: {error}", where=self._source
            ) from error
        return prompt

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int | None,
        stop: Sequence[str],
        json_schema: Mapping[str, Any] | None = None,
    ) -> Generator[Chunk]:
        """Generate a continuation of a prompt, or an answer to messages, piece by piece; see `Engine.stream`."""
        if json_schema is not None:
            raise UnsupportedModelError(
                "the engine transformers cannot hold an answer to a JSON schema",
                where=self._source,
                next="use --engine llamacpp",
            )
        prompt = prompt if isinstance(prompt, str) else self.render(prompt)
        bos = self._tokenizer.bos_token
        tokens = self._tokenize(prompt, add_special=not (bos and prompt.startswith(bos)))
        limit = new_tokens(len(tokens), max_new_tokens, self.context)
        detokenizer, stops = Detokenizer(self._tokenizer, tokens[-_CONTEXT_TOKENS:]), StopStrings(stop)
        count, last = 0, -1
        passes: list[int] = []  # tokens that the model looks at in each
        generated = _generate(self._model, tokens, self._ends, limit, temperature, seed, self._draft, passes)
        try:
            for last in generated:
                count += 1
                text, found = stops.add(detokenizer.add(last))
                if found:
                    yield Chunk(text, "stop", len(tokens), count, *self._drafted(passes, len(tokens), count))
                    return
                if text:
                    yield Chunk(text)
        finally:
            generated.close()
        reason: FinishReason = "stop" if last in self._ends else "length"
        text, found = stops.add(detokenizer.rest())
        text, reason = (text, "stop") if found else (text + stops.rest(), reason)
        yield Chunk(text, reason, len(tokens), count, *self._drafted(passes, len(tokens), count))

    def without_draft(self) -> TransformersEngine:
        """The same model; see `Engine.without_draft`."""
        plain = copy(self)
        plain._draft = None
        return plain

    def close(self) -> None:
        """Give back the model's memory."""
        del self._model

    def _drafted(self, passes: Sequence[int], prompt: int, count: int) -> tuple[int, ...]:
        """Tokens guessed and accepted: a pass looks at the prompt, or at the last token, and at the guess that follows it."""
        if self._draft is None:
            return ()
        guessed = sum(passes) - prompt - (len(passes) - 1)
        return guessed, min(guessed, max(0, count - len(passes)))

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=add_special)["input_ids"]
        return tokens


def _generate(
    model: PreTrainedModel,
    tokens: list[int],
    ends: list[int],
    limit: int,
    temperature: float,
    seed: int | None,
    draft: PreTrainedModel | str | None,
    passes: list[int],
) -> Generator[int]:
    """Run `model.generate` in a thread and yield each new token as it comes; closing the iterator ends the thread."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    arrived: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    cancelled = threading.Event()

    class Streamer:
        prompt_seen = False

        def put(self, value: torch.Tensor) -> None:
            if self.prompt_seen:  # the first call brings the prompt
                for token in value.flatten().tolist():
                    arrived.put(token)
            self.prompt_seen = True

        def end(self) -> None:
            """The end of the thread says so."""

    def is_cancelled(input_ids: torch.Tensor, _scores: torch.Tensor) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), cancelled.is_set(), device=input_ids.device)

    def note(_model: object, _arguments: object, named: dict[str, Any]) -> None:
        passes.append(named["input_ids"].shape[1])

    sampling = {"do_sample": True, "temperature": temperature, "top_k": TOP_K, "top_p": TOP_P} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # a single sequence is never padded; without one generate() warns
        use_cache=True,
        **({"do_sample": False} | sampling | ({"prompt_lookup_num_tokens": _LOOKUP_TOKENS} if draft == NGRAM else {})),
    )
    assistant = {} if draft is None or draft == NGRAM else {"assistant_model": draft}
    ids = torch.tensor([tokens], device=model.device)

    def work() -> None:
        try:
            devices = [model.device] if model.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):  # the caller's own random numbers stay as they were
                if seed is None:
                    torch.seed()
                else:
                    torch.manual_seed(seed)
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    streamer=Streamer(),
                    stopping_criteria=StoppingCriteriaList([is_cancelled]),
                    **assistant,
                )
            arrived.put(None)
        except BaseException as error:  # raised again where the tokens are read
            arrived.put(error)

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    thread = threading.Thread(target=work, name="deepen-generate", daemon=True)
    thread.start()
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        cancelled.set()
        thread.join()
        hook.remove()
