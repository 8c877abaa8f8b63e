"""Whoever writes for the tests of `write`: a scripted author behind a server, and facts that it may know."""

import re
import zlib

import deepen
from scribe import Scribe

FACTS = """# Post

Parcels to Norway take 5 days and cost 9 euros. Parcels to Peru take 21 days.

## Refunds

- A refund is paid within 14 days to the card that was used.
- The shop in Bergen was founded in 1987 by Maria Lopez.
"""
OUTLINE = "Title: Sending parcels\n1. Delivery: how long it takes\n2. Money: what is paid back\n"
SUBJECTS = re.findall(
    r"\w+", "garden river lantern teacher village morning harbour forest kitchen letter winter bridge market island"
)


def prose(words, start=0):
    """Sentences of eight words, each of them another one."""
    told = []
    for number in range(start, start + max(1, words // 8)):
        subject, other, third = (SUBJECTS[(number // len(SUBJECTS) ** power) % len(SUBJECTS)] for power in range(3))
        told.append(f"Every {subject} near {other} holds one {third} forever.")
    return " ".join(told)


class Author:
    """Answers each kind of request with what the test gives for it, or with prose of the length that is asked for, other
    prose for another question."""

    def __init__(self, **says):
        self.says = {"outline": OUTLINE, "revision": ""} | says

    def __call__(self, text, number):
        kind = (
            "outline" if "`Title: ...`" in text else "revision" if "Improve this draft" in text
            else "retell" if "Tell these facts" in text else "more" if text.startswith("Go on") or "Begin at once" in text
            else "section"
        )  # fmt: skip
        told = self.says.get(kind)
        if callable(told):
            return told(text)
        if told is None:
            words = int(re.search(r"about (\d+) (?:more )?words", text)[1])
            told = prose(words, zlib.crc32(text.encode()) % 2500)
        return told


def write(author=None, *, kind="article", about="sending parcels", **options):
    with Scribe(author if callable(author) else Author(**(author or {}))) as scribe:
        writing = deepen.write("scribe", kind=kind, about=about, engine=scribe.url, **options)
    return writing, scribe
