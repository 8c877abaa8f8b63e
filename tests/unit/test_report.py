"""The report of an evaluation: three forms of the same numbers, in which nothing that a stranger wrote is markup."""

import html.parser
import json
import re
from pathlib import Path

import pytest
import yaml

from deepen.errors import CheckpointError, OptionError, OutputError
from deepen.evaluate import Report
from deepen.evaluate.card import model_index, update
from deepen.evaluate.compare import compare
from deepen.evaluate.published import REFERENCES, TASKS, published
from deepen.evaluate.report import html as page_of
from deepen.evaluate.report import markdown, write_report
from deepen.evaluate.results import Item, TaskResult
from deepen.evaluate.statistics import mean_interval
from deepen.report.page import element, page, section, table

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>|`\x1b[2J\u202e"


def task(name: str, scores: list[float], text: str = "What is it?") -> TaskResult:
    value, error, low, high = mean_interval(scores)
    items = tuple(
        Item(
            f"{name}/{number}",
            score,
            {"question": text, "answer": text, "target": "B", "choices": [text, "B"], "log_likelihoods": [-1.0, float("-inf")]},
        )
        for number, score in enumerate(scores)
    )
    return TaskResult(
        name=name, metric="acc", value=value, stderr=error, low=low, high=high, n=len(scores), rows=100, shots=5, version="1.0",
        seconds=1.5, energy_joules=None, items=items,
    )  # fmt: skip


def report(model: str = "org/model", text: str = "What is it?") -> Report:
    own = {name: task(name, [1.0] * 30 + [0.0] * 10, text) for name in TASKS}
    other = {name: task(name, [1.0] * 10 + [0.0] * 30, text) for name in TASKS}
    rows = [row.to_dict() for row in published("solar")]
    return Report(
        model=model, suite="h6", tasks={name: each.to_dict() for name, each in own.items()}, average=0.75, seconds=9.0,
        energy_joules=12.0, versions={"deepen": "0"}, limit=40, notes=(f"a note of {text}",), results=own,
        others={"other": other}, comparisons={"other": compare(own, other)},
        reference={"label": "published elsewhere", "columns": list(TASKS), "rows": rows}, lm_eval={"results": {}},
    )  # fmt: skip


class Tags(html.parser.HTMLParser):
    """Which elements a page has, and what they point at."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_no_name_and_no_row_becomes_markup() -> None:
    text = page_of(report(HOSTILE, HOSTILE))
    names = {tag for tag, _ in tags(text).found}
    assert names & {"script", "img", "iframe", "link", "object"} == set()
    assert "&lt;script&gt;" in text
    assert not re.search(r"[\x1b\u202e]", text)
    assert all(not key.startswith("on") for _, attributes in tags(text).found for key in attributes)


def test_a_page_needs_nothing_from_elsewhere() -> None:
    text = page_of(report())
    for tag, attributes in tags(text).found:
        assert not {"src", "href", "action"} & attributes.keys(), tag
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text.replace("&#x27;", "'")


def test_a_page_tells_those_who_do_not_see_it() -> None:
    found = tags(page_of(report())).found
    assert found[0] == ("html", {"lang": "en"})
    pictures = [attributes for tag, attributes in found if tag == "svg" and attributes.get("aria-hidden") != "true"]
    assert len(pictures) == 2
    assert all(attributes["role"] == "img" and "75.0" in (attributes["aria-label"] or "") for attributes in pictures)
    assert [tag for tag, _ in found].count("h1") == 1
    assert {attributes.get("scope") for tag, attributes in found if tag == "th"} == {"col", "row"}


def test_attributes_cannot_be_left() -> None:
    text = element("p", title='a" onclick="alert(1)')
    assert tags(str(text)).found == [("p", {"title": 'a" onclick="alert(1)'})]
    assert str(table(("a",), [("<b>",)], caption="<i>")).count("<b>") == 0
    assert "<script>" not in page("<script>", [section("<script>", "<script>")])


def test_markdown_has_the_same_rows_and_no_markup_of_strangers() -> None:
    text = markdown(report(HOSTILE, HOSTILE))
    assert "<script>" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables[:9]} == {8}
    assert "| hellaswag | acc | 75.00% |".replace("_", r"\_") in text


def test_the_folder_appears_with_all_that_it_should_have(tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(report(), out)
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    names = {"report.html", "report.md", "report.json", "results.json", "results.png", "model-index.yaml"}
    assert files == names | {f"samples/{name}.jsonl" for name in TASKS}
    content = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["comparisons"]["other"]["hellaswag"]["verdict"] == "better"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (out / "samples/gsm8k.jsonl").read_text().splitlines()]
    assert len(lines) == 80
    assert lines[0]["log_likelihoods"] == [-1.0, None]
    assert {line["model"] for line in lines} == {"org/model", "other"}
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="exists already"):
        write_report(report(), out)
    write_report(report(), out, overwrite=True)


def test_a_model_index_in_the_form_of_the_hub(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- a\n---\n# A model\n\ntext --- here\n")
    update(tmp_path, report())
    update(tmp_path, report())  # in place of what is there
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.text.strip() == "# A model\n\ntext --- here"
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert len(results) == 6
    assert results["HellaSwag"].metric_value == 75.0
    assert results["HellaSwag"].dataset_args == {"num_few_shot": 5}
    assert results["HellaSwag"].metric_name == "acc, 40 of 100"
    assert yaml.safe_load(yaml.safe_dump(model_index(report(HOSTILE))))[0]["name"]


def test_a_card_that_cannot_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\na: [\n---\ntext\n")
    with pytest.raises(CheckpointError, match="header of the model card is not YAML"):
        update(tmp_path, report())
    assert card.read_text() == "---\na: [\n---\ntext\n"
    card.unlink()
    update(tmp_path, report())
    assert card.read_text().startswith("---\nmodel-index:\n")


def test_the_published_rows_are_those_of_the_paper() -> None:
    """The average of each row is the mean of its values, to the last printed digit; the best is SOLAR's."""
    rows = published("solar")
    assert len(rows) == 13
    for row in rows:
        assert abs(sum(row.values) / 6 - row.average) < 0.0051
        assert "2312.15166" in row.source
        assert "b281b09" in row.harness
    assert rows[0].model == "SOLAR 10.7B-Instruct"
    assert set(REFERENCES) == {"solar"}
    with pytest.raises(OptionError, match="no reference is called 'lunar'"):
        published("lunar")
