"""An answer of an endpoint, and the name that it is kept under: by what was asked, so that none is paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered, and what it counted.

    Attributes:
        text: of the answer; nothing if the endpoint gave none.
        finish_reason: as the endpoint says it; "length" is an answer that was cut off.
        prompt_tokens: None where the endpoint does not count.
        completion_tokens: the same.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def key_of(body: Mapping[str, Any], sample: int) -> str:
    """The name of a request: SHA-256 of its prompt and parameters and of which sample of them it is."""
    content = json.dumps({**body, "sample": sample}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()
