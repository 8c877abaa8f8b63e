"""What every engine offers; whatever generates text is written against this page alone."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from deepen.errors import DataError

Message = dict[str, str]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": text}`."""

Prompt = str | Sequence[Message]
"""Text that is continued as it stands, or a conversation that goes through the model's chat template."""

FinishReason = Literal["stop", "length"]
"""`stop`: the model ended its answer or a stop string came; `length`: the limit or the context is reached."""

TOP_K, TOP_P = 40, 0.95
"""Sampling at a temperature above 0 is the same in every engine: the 40 likeliest tokens, cut to 95 % of the probability."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it is generated. Only the last one has a finish reason and counts; its text may be empty."""

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int | None = None
    """Guessed by a draft; None without one."""
    draft_accepted: int | None = None
    """Of these, the ones that the model agreed with."""


class Engine(Protocol):
    """A loaded model that turns prompts into text. Not for use by several threads at once."""

    name: str
    context: int | None
    """Tokens of prompt and answer together; None where the model sets no limit."""
    has_template: bool
    """Whether the model brings a chat template, so that `render` works."""
    uses_gpu: bool | None
    """Whether it computes on this machine's GPUs; None where it computes on another machine."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for the next answer of a conversation, by the model's chat template.

        Raises:
            UnsupportedModelError: the model has no chat template, or its template cannot render these messages.
        """
        ...

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
        """Generate a continuation of a prompt, or an answer to messages, piece by piece. Closing the iterator stops the work.

        Special tokens that the model puts before a text are added, unless the prompt starts with them already.

        Args:
            prompt: plain text, or a conversation.
            max_new_tokens: generate at most so many, and never past the context.
            temperature: 0 takes the likeliest token each time.
            seed: makes sampling repeatable; None draws a new one.
            stop: strings that end the answer; they are not part of it.
            json_schema: the answer is JSON of this schema.

        Raises:
            DataError: the prompt is empty or fills the context.
            UnsupportedModelError: the chat template cannot render the messages, or the engine knows no schemas.
            MachineError: the engine died.
        """
        ...

    def without_draft(self) -> Engine:
        """The same model without its draft, to be closed by itself."""
        ...

    def close(self) -> None:
        """Give back the engine's memory."""
        ...


def new_tokens(prompt_tokens: int, max_new_tokens: int, context: int | None) -> int:
    """How many tokens may be generated after a prompt: `max_new_tokens`, or as many as the context still holds.

    Raises:
        DataError: the prompt is empty or leaves no room. A prompt is never cut.
    """
    if prompt_tokens == 0:
        raise DataError("the prompt has no tokens", next="write a prompt")
    if context is None:
        return max_new_tokens
    if prompt_tokens >= context:
        raise DataError(
            f"the prompt has {prompt_tokens} tokens, but the context holds {context}, answer included",
            next="shorten the prompt, use a model with a longer context, or let --trim oldest leave out the beginning",
        )
    return min(max_new_tokens, context - prompt_tokens)
