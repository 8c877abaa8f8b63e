"""Reports as values: the page and the Markdown say the same, and nothing that comes from elsewhere becomes markup."""

import re

from deepen.report.blocks import Code, Drawing, Section, Table, Text, to_html, to_markdown
from deepen.report.lines import layer_plan, lines

EVIL = "<script>alert(1)</script> | `x` [a](b)"
SECTIONS = [
    Section(
        "First", [Text(EVIL), Table(f"of {EVIL}", ("name", "value"), [(EVIL, "1")], (1,)), Code("a\n```\nb", f"see {EVIL}")]
    ),
    Section("Nothing in it"),
    Section("Last", [Drawing(lines({EVIL: [(0, 2.0), (10, 1.0)]}, about=EVIL, level=("base", 1.5)), EVIL, "a/b.png")]),
]


def test_the_page_holds_no_markup_from_elsewhere() -> None:
    html = to_html(EVIL, EVIL, SECTIONS)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 6
    assert "Nothing in it" not in html


def test_the_markdown_has_whole_tables_and_fences() -> None:
    text = to_markdown(EVIL, EVIL, SECTIONS)
    assert "<script>" not in text.replace("see \\<script\\>", "")
    assert "Nothing in it" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3]
    assert "````text\na\n```\nb\n````" in text
    assert "](<a/b.png>)" in text


def test_a_chart_without_a_finite_value_next_to_one_with_some() -> None:
    svg = lines({"broken": [(0, float("inf")), (5, float("nan"))], "flat": [(0, 3.0)]}, about="x")
    assert "inf" not in svg
    assert "nan" not in svg


def test_a_plan_has_a_row_for_each_run_of_layers_and_a_block_for_each_layer() -> None:
    svg = layer_plan(4, (0, 1, 2, 1, 2, 3), identity=(3, 4), about="x")
    assert svg.count('class="bed"') == 2
    assert svg.count('class="f0"') == 6
    assert svg.count('opacity="0.45"') == 2
    assert "3 to 5: base 1 to 3, seam 2 → 1" in svg
