"""Draw docs/rooms.svg, the picture of the rooms, from the table in docs/design.md.

python docs/generate_rooms.py
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PICTURE = HERE / "rooms.svg"
WIDTH, MARGIN, LABEL, GAP = 960, 16, 88, 10
ROW, BOX = 62, 42
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1f2430 }
  .floor { fill: #f1f3f8 } .floor.torch { fill: #fdf1e3 }
  .room { fill: #ffffff; stroke: #8a94ad; stroke-width: 1.2 }
  .number { fill: #5b6478 } .note { fill: #5b6478; font-size: 13px }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8ebf2 } .number, .note { fill: #a3acc0 }
    .floor { fill: #20242e } .floor.torch { fill: #33291d } .room { fill: #2b303c; stroke: #67718a }
  }
"""
PURE = 2  # floors up to this one never import torch


def floors(page: str) -> dict[int, list[tuple[str, str]]]:
    """Rooms with what they do, by floor."""
    found: dict[int, list[tuple[str, str]]] = {}
    for number, names, about in re.findall(r"^\| (\d+) \| ([^|]+) \| (.+) \|$", page, flags=re.MULTILINE):
        rooms = re.findall(r"`([a-z_]+)/?`", names)
        parts = about.split("; ") if len(rooms) > 1 else [about]
        for place, room in enumerate(rooms):
            said = parts[place] if len(parts) == len(rooms) else about
            found.setdefault(int(number), []).append((room, said.replace("`", "")))
    return found


def draw(page: str) -> str:
    """The picture as SVG: the upper floors above, each importing only from those below."""
    rooms = floors(page)
    height = 2 * MARGIN + ROW * len(rooms) + 28
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">The rooms of deepen: each imports only from lower floors</title>',
        f"<style>{STYLE}</style>",
    ]
    for row, number in enumerate(sorted(rooms, reverse=True)):
        top = MARGIN + row * ROW
        kind = "floor" if number <= PURE else "floor torch"
        lines.append(f'<rect class="{kind}" x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" height="{ROW - 8}" rx="8"/>')
        lines.append(f'<text class="number" x="{MARGIN + 14}" y="{top + 32}">floor {number}</text>')
        names = rooms[number]
        box = (WIDTH - 2 * MARGIN - LABEL - GAP * len(names)) / len(names)
        for place, (room, about) in enumerate(names):
            left = MARGIN + LABEL + place * (box + GAP)
            lines += [
                f"<g><title>{escape(about)}</title>",
                f'<rect class="room" x="{left:.1f}" y="{top + 6}" width="{box:.1f}" height="{BOX}" rx="6"/>',
                f'<text x="{left + box / 2:.1f}" y="{top + 32}" text-anchor="middle">{escape(room)}</text></g>',
            ]
    note = f"Floors 0 to {PURE} never import torch. A room imports only from lower floors, and from none on its own."
    lines += [f'<text class="note" x="{MARGIN}" y="{height - MARGIN}">{note}</text>', "</svg>"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw((HERE / "design.md").read_text(encoding="utf-8")), encoding="utf-8")
