"""Engines, which run a model: `llamacpp` in a child process, `transformers` in this one, `openai` behind a URL."""

from __future__ import annotations

from deepen.engine.protocol import Chunk, Engine, FinishReason, Message, Prompt

__all__ = ["Chunk", "Engine", "FinishReason", "Message", "Prompt"]
