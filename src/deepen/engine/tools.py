"""Calls that must be made: `tool_choice` "required" or one function, held to by a JSON schema.

llama.cpp lets a model talk as long as it likes before such a call. So the engine is asked for an object of the call's schema,
the tools being shown by the chat template all the same, and the object is answered as a call.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any


def must_call(content: Mapping[str, Any]) -> bool:
    """Whether a request for a chat completion demands a call of a tool."""
    return bool(content.get("tools")) and (content.get("tool_choice") == "required" or _named(content) is not None)


def as_schema(content: Mapping[str, Any]) -> dict[str, Any]:
    """The request that asks for the object.

    Raises:
        ValueError: the tools are not functions, or the one that is named is not among them.
    """
    try:
        functions = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in content["tools"]}
    except (TypeError, KeyError, AttributeError):
        raise ValueError("tools are a list of objects with a function of a name and parameters") from None
    name = _named(content)
    if name is not None and name not in functions:
        raise ValueError(f"tool_choice names {name!r}, which is not among the tools")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each}, "arguments": parameters or {"type": "object"}},
            "required": ["name", "arguments"],
        }
        for each, parameters in functions.items()
        if name in (None, each)
    ]
    kept = {key: value for key, value in content.items() if key not in _REPLACED}
    given = content.get("chat_template_kwargs")
    return kept | {
        "chat_template_kwargs": (given if isinstance(given, dict) else {}) | {"tools": content["tools"]},
        "response_format": {"type": "json_schema", "json_schema": {"name": "call", "schema": {"anyOf": calls}}},
    }


def as_calls(answer: dict[str, Any]) -> dict[str, Any]:
    """The engine's answer as that to the request: the object as a call. One that was cut at the limit stays text."""
    return answer | {"choices": [_called(choice) for choice in answer["choices"]]}


def call_events(answer: dict[str, Any], *, counted: bool) -> list[dict[str, Any]]:
    """The events of a stream that gives an answer of `as_calls` at once.

    Args:
        answer: the answer.
        counted: with the counts of tokens at the end.
    """
    kept = ("id", "created", "model", "system_fingerprint")
    head: dict[str, Any] = {key: answer[key] for key in kept if key in answer} | {"object": "chat.completion.chunk"}
    events: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        message = choice["message"]
        calls = [{"index": place, **call} for place, call in enumerate(message.get("tool_calls", ()))]
        delta = message | ({"tool_calls": calls} if calls else {})
        events += [
            {**head, "choices": [{"index": choice["index"], "delta": delta, "finish_reason": None}]},
            {**head, "choices": [{"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}]},
        ]
    return [*events, *([{**head, "choices": [], "usage": answer["usage"]}] if counted else [])]


_REPLACED = {"tools", "tool_choice", "parallel_tool_calls", "response_format", "stream", "stream_options"}


def _named(content: Mapping[str, Any]) -> str | None:
    choice = content.get("tool_choice")
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _called(choice: dict[str, Any]) -> dict[str, Any]:
    try:
        made = json.loads(choice["message"]["content"])
    except ValueError:
        return choice
    function = {"name": made["name"], "arguments": json.dumps(made["arguments"], ensure_ascii=False)}
    call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
    message = choice["message"] | {"content": None, "tool_calls": [call]}
    return choice | {"message": message, "finish_reason": "tool_calls"}
