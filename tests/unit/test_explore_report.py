"""What a search leaves behind: its files, its pictures, its page in a real browser, and what is typed next."""

import html.parser
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import deepen
from browser import PROGRAM, open_page
from deepen.cli import run_program
from deepen.explore.depth import depth_curve
from deepen.explore.report import describe, write_report
from deepen.explore.results import Candidate, Interval, Scored
from deepen.plan import parse_plan
from deepen.report.differences import TICKS, colour, difference, place
from deepen.report.plans import Block, heatmap
from deepen.report.plans_page import plans_page
from deepen.report.plans_words import command, words
from trainable import write_checkpoint, write_text

HOSTILE = "</script><script>alert(1)</script>\"'&<img src=http://x/ onerror=alert(2)>\u202e$x_{1}$"
OPTIONS = {"add": 2, "tokens": 2000, "window": 32, "heal": 2, "kinds": ("repeat", "drop", "times")}
WORDS = ["--add", "2", "--tokens", "2k", "--window", "32", "--heal", "2", "--kinds", "repeat,drop,times"]


@pytest.fixture(scope="module")
def place_of_all(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    write_checkpoint(folder / "model", num_hidden_layers=6, hidden_size=16, intermediate_size=24)
    write_text(folder / "words.txt", 2000)
    return folder


@pytest.fixture(scope="module")
def found(place_of_all):
    """A real search with healing trials."""
    return deepen.explore(place_of_all / "model", data=place_of_all / "words.txt", out=place_of_all / "found", **OPTIONS)


@pytest.fixture(scope="module")
def document(found):
    return describe(found)


def test_all_files_are_there_and_nothing_else(found, place_of_all) -> None:
    names = {file.name for file in (place_of_all / "found").iterdir()}
    pictures = {"heatmap.png", "influence.png", "front.png", "healing.png"}
    assert names == {"plans.json", "best.yaml", "report.html"} | pictures


def test_plans_json_says_all(document, place_of_all) -> None:
    written = json.loads((place_of_all / "found" / "plans.json").read_text())
    assert written == json.loads(json.dumps(document))
    assert {"base", "plans", "curve", "influence", "grid", "work", "trials", "best", "notes"} <= written.keys()
    for plan in written["plans"]:
        assert {"layers", "added", "score", "low", "high", "held_out", "cost"} <= plan.keys()
        assert plan["added"] == 2
        assert plan["low"] <= plan["score"] <= plan["high"]


def test_best_yaml_is_the_best_plan(found, document, place_of_all) -> None:
    plan = deepen.plan(place_of_all / "model", plan=place_of_all / "found" / "best.yaml")
    assert plan.layers == found.plans[0].candidate.layers
    identity = min(found.plans[0].healed, key=lambda each: each["value"])["start"] == "identity"
    assert bool(plan.identity) == identity == ("identity_init" in document["best"])


def test_solars_plan_is_marked_also_beside_a_plan_of_another_size(found, document) -> None:
    assert document["marks"]["solar"] == [2, 4]  # `--drop 2` of six layers makes eight, as all of these plans do
    odd = replace(found.plans[0], candidate=Candidate({"repeat": "1:4"}, parse_plan(6, repeat="1:4").layers), healed=())
    marks = describe(replace(found, plans=(odd,)))["marks"]
    assert marks["best"] == [1, 4]
    assert sum(marks["solar"]) == 6
    assert marks["repeated"] == [1, 2, 3]


def test_a_plan_given_up_after_one_window_has_no_interval(found, tmp_path) -> None:
    unknown = Interval(found.plans[0].score.value, float("nan"), float("nan"))
    less = Interval(found.plans[0].difference.value, float("nan"), float("nan"))
    write_report(tmp_path, replace(found, plans=(replace(found.plans[0], score=unknown, difference=less),)))
    (plan,) = json.loads((tmp_path / "plans.json").read_text())["plans"]
    assert plan["low"] is plan["difference"]["high"] is None
    assert "not known" in (tmp_path / "report.html").read_text()


def test_after_trials_plans_stand_where_they_end(found, document) -> None:
    healed = [min(each["value"] for each in plan.healed) for plan in found.plans if plan.healed]
    assert len(healed) >= 3
    assert healed == sorted(healed)
    assert all(not plan.healed for plan in found.plans[len(healed) :])
    assert [plan.rank for plan in found.plans] == sorted(plan.rank for plan in found.plans)
    assert any("drop" in trial["options"] for trial in document["trials"]["trials"])


def test_killed_and_continued_it_writes_the_same(found, place_of_all, tmp_path) -> None:
    arguments = [str(place_of_all / "model"), "--data", str(place_of_all / "words.txt"), "--out", str(tmp_path / "found")]
    program = [sys.executable, "-m", "deepen", "explore", *arguments, *WORDS]
    with subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if line.startswith("healing trial 4"):
                process.send_signal(signal.SIGKILL)
                break
    assert not (tmp_path / "found").exists()
    again = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "healing trial 1 of" not in again.stderr
    assert "healing trial 4 of" in again.stderr
    for name in ("best.yaml", "plans.json", "report.html"):
        once, twice = ((folder / "found" / name).read_bytes() for folder in (place_of_all, tmp_path))
        assert once == twice, name


def test_the_command_says_what_to_type_next(found, place_of_all, tmp_path, capsys) -> None:
    arguments = [str(place_of_all / "model"), "--data", str(place_of_all / "words.txt"), "--out", str(tmp_path / "found")]
    assert run_program(["explore", *arguments, "--add", "2", "--tokens", "2k", "--window", "32"]) == 0
    told = capsys.readouterr().out
    assert "95 % interval" in told
    assert "held out" in told
    following = told.rsplit("Next: deepen ", 1)[1].strip().replace(" deeper ", f" {tmp_path / 'deeper'} ").split()
    assert run_program(following) == 0
    best = json.loads((tmp_path / "found" / "plans.json").read_text())["plans"][0]
    made = json.loads((tmp_path / "deeper" / "deepen.json").read_text())
    assert made["plan"]["layers"] == best["layers"]


def test_help_of_a_search_needs_no_torch() -> None:
    code = (
        "import sys; from deepen.cli import run_program; run_program(['explore', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_no_healing_without_steps(place_of_all, tmp_path) -> None:
    with pytest.raises(deepen.errors.OptionError, match="0 steps heal nothing"):
        deepen.explore(place_of_all / "model", data=place_of_all / "words.txt", out=tmp_path / "out", heal=0)


# Words


def test_commands_are_quoted_for_a_shell() -> None:
    assert words({"repeat": "5:19", "identity_init": True}) == "--repeat 5:19 --identity-init"
    assert words({"drop": 8, "plan": None}) == "--drop 8"
    assert command("my model; rm -rf ~", {"drop": 8}) == "deepen scale 'my model; rm -rf ~' deeper --drop 8"
    assert command("--overwrite", {"drop": 8}).startswith("deepen scale ./--overwrite deeper")


# The depth curve


def made_up(added: int, value: float, flops: float | None = None) -> Scored:
    candidate = Candidate({"repeat": f"1:{1 + added}"}, parse_plan(12, repeat=f"1:{1 + added}").layers)
    cost = {"added": added, "flops_per_token": flops or 100 + added, "flops_ratio": 1 + added / 100}
    return Scored(candidate, Interval(3 + value, 0, 9), Interval(value, value - 0.1, value + 0.1), 100, cost)


def test_the_depth_curve_is_the_best_of_each_size() -> None:
    plans = [made_up(1, 0.3), made_up(1, 0.1), made_up(2, 0.4), made_up(4, 0.2), made_up(5, 0.6)]
    curve = depth_curve(plans)
    assert [(each["added"], each["difference"]) for each in curve] == [(1, 0.1), (2, 0.4), (4, 0.2), (5, 0.6)]
    assert [each["deepest"] for each in curve] == [True, False, True, True]  # four layers harm less than two
    assert not any(each["front"] for each in curve)  # the base is cheaper, and better


def test_a_plan_better_than_the_base_is_on_the_front() -> None:
    curve = depth_curve([made_up(1, -0.1), made_up(2, -0.05), made_up(3, -0.2), made_up(4, 0.1)])
    assert [each["front"] for each in curve] == [True, False, True, False]
    assert depth_curve([]) == []


# Colours and pictures


def lightness(value: float) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour(value)[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_show_a_tenth_of_a_nat_as_well_as_three() -> None:
    steps = [lightness(value) for value in (0, 0.03, 0.1, 0.3, 1, 3, 6)]
    assert all(before - after > 0.02 for before, after in pairwise(steps))
    below = [lightness(value) for value in (0, -0.1, -0.3, -1, -3)]
    assert below == sorted(below, reverse=True)
    for better, worse in ((-0.1, 0.1), (-1, 1)):
        red, blue = (int(colour(better)[at : at + 2], 16) for at in (1, 5))
        assert blue > red
        red, blue = (int(colour(worse)[at : at + 2], 16) for at in (1, 5))
        assert red > blue
    assert colour(float("nan")) == colour(99.0) == colour(6.0)
    for tick in TICKS:
        assert difference(place(tick)) == pytest.approx(tick)


def pixels(file: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(file)[..., :3]


def test_the_map_shows_every_cell_in_its_colour(tmp_path) -> None:
    values = {(0, 1): 3.0, (0, 2): 1.0, (1, 2): 0.1, (0, 3): -0.3, (1, 3): 0.3, (2, 3): 0.03}
    cells = [Block(first, end, value, exact=True) for (first, end), value in values.items()]
    heatmap(tmp_path / "map.png", cells, 3, best=None, solar=None, name="$a_{")
    image = pixels(tmp_path / "map.png")
    amounts = {}
    for block, value in values.items():
        wanted = [int(colour(value)[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        amounts[block] = int((np.abs(image - wanted).max(-1) < 0.005).sum())
    assert min(amounts.values()) > 30_000, amounts
    heatmap(tmp_path / "half.png", [replace(cell, exact=False) for cell in cells], 3, best=(0, 2), solar=(1, 2))
    half = pixels(tmp_path / "half.png")
    wanted = [int(colour(1.0)[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    assert int((np.abs(half - wanted).max(-1) < 0.005).sum()) < 2_000  # only the scale has it: what is predicted is pale


# The page


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def test_the_page_is_alone_and_hostile_text_stays_text(document) -> None:
    bad = {**document, "model": f"folder/{HOSTILE}", "notes": [HOSTILE], "objective": HOSTILE}
    text = plans_page(bad)
    tags = Tags()
    tags.feed(text)
    names = [name for name, _ in tags.seen]
    assert names.count("script") == 1
    assert not {"img", "link", "iframe", "object", "base"} & set(names)
    for _, attributes in tags.seen:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    policies = [a["content"] for n, a in tags.seen if n == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]
    assert "\u202e" not in text
    assert "alert(1)" in text  # it is shown, as text


def test_a_page_without_plans_says_so(found, tmp_path) -> None:
    write_report(tmp_path, replace(found, plans=(), trials=None))
    assert "No plan passed the guard" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "best.yaml").exists()


@pytest.fixture
def page(place_of_all, found, tmp_path):
    if PROGRAM is None and os.environ.get("DEEPEN_TEST_BROWSER") != "required":
        pytest.skip("no Chromium is installed")
    profile = tmp_path / "profile"
    profile.mkdir()
    with open_page(f"file://{place_of_all}/found/report.html", profile) as page:
        page.wait("document.readyState === 'complete' && document.getElementById('cells') !== null")
        yield page


def key(page, name, code):
    event = {"key": name, "code": name, "windowsVirtualKeyCode": code}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", event | {"type": kind})


def test_cells_are_pointed_at_and_chosen(page, document) -> None:
    told, chosen = "document.getElementById('told').textContent", "document.getElementById('chosen').textContent"
    cell = 'document.querySelector(\'[data-i="1"][data-j="3"]\')'
    page.evaluate(f"{cell}.scrollIntoView({{block: 'center'}})")
    spot = [page.evaluate(f"{cell}.getBoundingClientRect().{side}") for side in ("x", "y")]
    at = {"x": spot[0] + 8, "y": spot[1] + 8}
    page.call("Input.dispatchMouseEvent", {"type": "mouseMoved", **at})
    assert page.evaluate(told).startswith("--repeat 1:3: 6 + 2 layers")
    assert page.evaluate(chosen) == ""
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", {"type": kind, "button": "left", "clickCount": 1, **at})
    assert page.evaluate(chosen) == command(document["model"], {"repeat": "1:3"})


def test_cells_are_walked_by_keyboard(page, document) -> None:
    focused = "document.activeElement.dataset.i + ':' + document.activeElement.dataset.j"
    assert page.evaluate("document.querySelectorAll('#cells [tabindex=\"0\"]').length") == 1
    page.evaluate("document.querySelector('#cells [tabindex=\"0\"]').focus()")
    assert page.evaluate(focused) == "0:1"
    for name, code, where in (
        ("ArrowRight", 39, "0:2"),
        ("ArrowRight", 39, "0:3"),
        ("ArrowDown", 40, "1:3"),
        ("ArrowLeft", 37, "1:2"),
    ):
        key(page, name, code)
        assert page.evaluate(focused) == where
    key(page, "ArrowLeft", 37)  # there is no 1:1
    assert page.evaluate(focused) == "1:2"
    page.enter()
    assert page.evaluate("document.getElementById('chosen').textContent") == command(document["model"], {"repeat": "1:2"})
    assert page.evaluate("document.querySelectorAll('#cells [tabindex=\"0\"]').length") == 1
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("--repeat 1:2")


def test_a_plan_of_the_table_gives_its_command(page, document) -> None:
    for number, plan in list(enumerate(document["plans"]))[:3]:
        page.evaluate(f"document.querySelectorAll('button.plan')[{number}].click()")
        assert page.evaluate("document.getElementById('chosen').textContent") == command(document["model"], plan["options"])
    assert page.evaluate("document.getElementById('first').textContent") == command(document["model"], document["best"])


def test_it_fits_every_width_in_light_and_dark(page, tmp_path) -> None:
    folder = Path(os.environ.get("DEEPEN_TEST_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    grounds = {}
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        for width in (360, 800, 1400):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            page.call("Emulation.setDeviceMetricsOverride", size)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(folder / f"explore-{scheme}-{width}.png")
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light, dark = (sum(map(int, re.findall(r"\d+", grounds[scheme])[:3])) for scheme in ("light", "dark"))
    assert light > 600
    assert dark < 150
