"""The lines of a batch in OpenAI's form: requests in, answers out. What would differ from run to run is fixed here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_LENGTHS = ("max_tokens", "max_completion_tokens", "n_predict")
_STREAMING = ("stream", "stream_options")
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True)
class Task:
    """A line of the input.

    Attributes:
        number: of the line in the file, from 1.
        custom_id: what its author calls it; None if the line has no readable one.
        url: one of the three paths, if there is no error.
        body: the request.
        error: what is wrong with the line (a code and a message), so that it is not asked at all.
    """

    number: int
    custom_id: str | None
    url: str
    body: Mapping[str, Any]
    error: tuple[str, str] | None = None


@dataclass(frozen=True)
class Defaults:
    """What a body is given that does not say it itself.

    Attributes:
        model: the model's name; it replaces whatever the body names.
        max_new_tokens: longest answer.
        seed: with the line's `custom_id`, gives its seed.
        system: a system message for conversations that have none.
        sampling: temperature and the like.
        fixed: fields that replace the body's own.
    """

    model: str
    max_new_tokens: int
    seed: int
    system: str | None
    sampling: Mapping[str, Any]
    fixed: Mapping[str, Any]


def read_tasks(content: bytes) -> list[Task]:
    """The requests of a file, one a line; blank lines are none."""
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        task = _task(number, line)
        if task.custom_id in seen:
            message = f"line {seen[task.custom_id]} has the custom_id {task.custom_id!r} already"
            task = Task(number, task.custom_id, "", {}, ("duplicate_custom_id", message))
        elif task.custom_id is not None:
            seen[task.custom_id] = number
        tasks.append(task)
    return tasks


def request_body(task: Task, defaults: Defaults) -> dict[str, Any]:
    """What is asked of the engine: the line's body, and the defaults where it says nothing."""
    body = {name: value for name, value in task.body.items() if name not in _STREAMING} | {"model": defaults.model}
    if task.url == EMBEDDINGS:
        return body
    if all(body.get(name) is None for name in _LENGTHS):
        body["max_tokens"] = defaults.max_new_tokens
    if body.get("seed") is None:
        digest = hashlib.sha256(f"{defaults.seed}\0{task.custom_id}".encode(errors="surrogatepass")).digest()
        body["seed"] = int.from_bytes(digest[:4], "big") >> 1
    body |= {name: value for name, value in defaults.sampling.items() if body.get(name) is None}
    messages = body.get("messages")
    if defaults.system is not None and task.url == CHAT and isinstance(messages, list) and not _has_system(messages):
        body["messages"] = [{"role": "system", "content": defaults.system}, *messages]
    return body | dict(defaults.fixed)


def answer_line(task: Task, status: int, body: Mapping[str, Any]) -> str:
    """The line of the output for an answer of the engine, or for its refusal (a status other than 200)."""
    failed = status != HTTPStatus.OK
    error = {"code": f"http_{status}", "message": str(body["error"]["message"])} if failed else None
    response = {
        "status_code": status,
        "request_id": _name("req", task),
        "body": body if failed else _reproducible(task, body),
    }
    return _line(task, response, error)


def error_line(task: Task, code: str, message: str) -> str:
    """The line of the output for a line that has no answer."""
    return _line(task, None, {"code": code, "message": message})


def _task(number: int, line: bytes) -> Task:
    def broken(message: str) -> Task:
        return Task(number, custom_id, "", {}, ("invalid_line", f"line {number}: {message}"))

    custom_id = None
    try:
        content = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return broken("not a text in UTF-8")
    except (ValueError, RecursionError) as error:
        return broken(f"not valid JSON ({error})")
    if not isinstance(content, dict):
        return broken("not a JSON object")
    given = content.get("custom_id")
    if not isinstance(given, str):
        return broken("custom_id is missing" if given is None else "custom_id is not a text")
    custom_id = given
    method, url, body = (content.get(name) for name in ("method", "url", "body"))
    if method != "POST":
        return broken(f"method is {method!r}; only POST is known")
    if url not in (CHAT, COMPLETIONS, EMBEDDINGS):
        message = f"line {number}: url is {url!r}; known are {CHAT}, {COMPLETIONS} and {EMBEDDINGS}"
        return Task(number, custom_id, "", {}, ("unknown_url", message))
    if not isinstance(body, dict):
        return broken("body is not a JSON object")
    return Task(number, custom_id, url, body)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _has_system(messages: list[Any]) -> bool:
    return any(isinstance(message, dict) and message.get("role") in {"system", "developer"} for message in messages)


def _reproducible(task: Task, body: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without what differs from run to run: times are left out, and drawn names are made from the line's own."""
    kept = {name: value for name, value in body.items() if name not in {"timings", "usage"}}
    if "id" in kept:
        kept["id"] = _name("chatcmpl" if task.url == CHAT else "cmpl", task)
    if "created" in kept:
        kept["created"] = 0
    if isinstance(usage := body.get("usage"), dict):  # how much of a prompt came from a cache is left out, too
        kept["usage"] = {name: usage[name] for name in _COUNTS if name in usage}
    for choice in kept.get("choices") or ():
        for place, call in enumerate((choice.get("message") or {}).get("tool_calls") or ()):
            call["id"] = f"{_name('call', task)}_{choice.get('index', 0)}_{place}"
    return kept


def _line(task: Task, response: object, error: object) -> str:
    line = {"id": _name("batch_req", task), "custom_id": task.custom_id, "response": response, "error": error}
    return json.dumps(line)


def _name(kind: str, task: Task) -> str:
    digest = hashlib.sha256(f"{task.number}\0{task.custom_id}".encode(errors="surrogatepass")).hexdigest()
    return f"{kind}_{digest[:24]}"
