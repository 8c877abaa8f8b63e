"""One self-contained HTML page: no network, no script and no font from elsewhere; light and dark; fit for screen readers.

Everything that goes into a page is text and is escaped, unless it is `Html`, which only these functions make. So no model's
name and no row of a data set can become markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence

from deepen.errors import printable


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """An element of HTML or SVG.

    Args:
        name: such as `p`.
        children: `Html` goes in as it is, None not at all, and everything else as text.
        attributes: a trailing `_` is left out and other `_` become `-`, so `class_` and `aria_label` can be written; True gives
            the bare name, None and False nothing.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is not None and value is not False:
            words.append(key if value is True else f'{key}="{escape(value)}"')
    return Html(f"<{' '.join(words)}>" + ("" if name in _VOID else f"{join(children)}</{name}>"))


def join(parts: Iterable[object]) -> Html:
    """Parts one after another, as `element` takes them."""
    return Html("".join(part if isinstance(part, Html) else "" if part is None else escape(part) for part in parts))


def escape(text: object) -> Html:
    """Text as it can stand in an element or an attribute; what steers a terminal or reorders text becomes visible."""
    return Html(html.escape(printable(text)))


def page(title: str, sections: Iterable[object], *, about: object = None, style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: its heading, and the title of the window.
        sections: what `section` gives, or anything that `element` takes.
        about: a line below the heading.
        style: further rules.
        script: runs at the end of the page, which allows no other.
    """
    policy = _POLICY
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    body = element(
        "main",
        element("header", element("h1", title), None if about is None else element("p", about, class_="about")),
        *sections,
    )
    code = element("script", Html(script)) if script else None
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(_STYLE + style)),
    )  # fmt: skip
    return f"<!doctype html>\n{element('html', head, element('body', body, code), lang='en')}\n"


def section(heading: str, *children: object) -> Html:
    """A part of the page with a heading of its own, which the address can point at."""
    name = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    return element("section", element("h2", heading, id=name), *children, aria_labelledby=name)


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object,
    numbers: Sequence[int] = (),
    marked: Sequence[int] = (),
) -> Html:
    """A table; on a narrow screen it is moved sideways, by keyboard too.

    Args:
        header: names of the columns.
        rows: cells; the first one names its row.
        caption: what the table shows, in a few words.
        numbers: columns that are aligned to the right.
        marked: rows that stand out.
    """

    def cell(place: int, value: object) -> Html:
        kind = "number" if place in numbers else None
        return element("th", value, scope="row", class_=kind) if place == 0 else element("td", value, class_=kind)

    heads = (
        element("th", name, scope="col", class_="number" if place in numbers else None) for place, name in enumerate(header)
    )
    lines = (
        element("tr", *(cell(place, value) for place, value in enumerate(row)), class_="marked" if number in marked else None)
        for number, row in enumerate(rows)
    )
    head, body = element("thead", element("tr", *heads)), element("tbody", *lines)
    grid = element("table", element("caption", caption), head, body)
    return element("div", grid, class_="scroll", tabindex=0, role="region", aria_label=_plain(caption))


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values, one pair a line."""
    return element("dl", *(join([element("dt", name), element("dd", value)]) for name, value in pairs))


def fold(summary: object, *children: object, open_: bool = False) -> Html:
    """What is read on request."""
    return element("details", element("summary", summary), *children, open_=open_)


def figure(picture: Html, caption: object) -> Html:
    """A picture and what it shows."""
    return element("figure", picture, element("figcaption", caption))


def _plain(value: object) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", value)) if isinstance(value, Html) else str(value)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_VOID = {"meta", "br", "img"}
# told apart by those who see red and green alike (Okabe and Ito 2008, jfly.uni-koeln.de/color); lighter on dark
_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --card: #f4f4f1; --ink: #22252a; --soft: #5a616b; --line: #dcdcd6;
  --good: #0b6b4f; --bad: #a8321f; --s0: #0072b2; --s1: #c77700; --s2: #00805e; --s3: #b0568a; --s4: #2f8fc4; --s5: #bf4e00; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --card: #1f2227; --ink: #e8e8e4; --soft: #a3a9b2;
  --line: #363a41; --good: #5fc9a1; --bad: #f0907d; --s0: #56b4e9; --s1: #e8a33d; --s2: #35c295; --s3: #dd93bd; --s4: #8ccaf0;
  --s5: #f08a4b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 44rem; } .about, figcaption, caption, .soft { color: var(--soft); }
.about { overflow-wrap: anywhere; margin-top: .4rem; }
a { color: var(--s0); } code, pre { font: .875em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--card); padding: .75rem 1rem; border-radius: 6px; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .5rem 0; }
.scroll { overflow-x: auto; margin: .75rem 0; } :focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .875rem; padding-bottom: .4rem; }
th, td { text-align: left; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { font-size: .8rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
tbody th { font-weight: 500; overflow-wrap: break-word; min-width: 7rem; } .number { text-align: right; white-space: nowrap; }
tr.marked > * { background: var(--card); font-weight: 600; }
th:last-child, td:last-child { padding-right: .25rem; } th:first-child { padding-left: .25rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: .75rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: 0 1rem; }
summary { cursor: pointer; padding: .55rem 0; overflow-wrap: anywhere; } details[open] { padding-bottom: .75rem; }
figure { margin: 1rem 0; } figure svg, figure img { display: block; width: 100%; } figcaption { font-size: .875rem; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg .soft { fill: var(--soft); }
svg .line { stroke: var(--line); fill: none; } svg .ink { stroke: var(--ink); stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: .5rem 0;
  font-size: .875rem; }
.legend li { overflow-wrap: anywhere; }
.legend svg { display: inline-block; width: .8em; height: .8em; margin-right: .45em; }
.f0 { fill: var(--s0); } .f1 { fill: var(--s1); } .f2 { fill: var(--s2); } .f3 { fill: var(--s3); } .f4 { fill: var(--s4); }
.f5 { fill: var(--s5); } .l0 { stroke: var(--s0); } .l1 { stroke: var(--s1); } .l2 { stroke: var(--s2); }
.l3 { stroke: var(--s3); } .l4 { stroke: var(--s4); } .l5 { stroke: var(--s5); }
@media print { details { break-inside: avoid; } body { background: none; } }
"""
