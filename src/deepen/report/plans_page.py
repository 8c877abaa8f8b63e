"""The page of a search for layer plans: a map to point at, the plans with their intervals, what they cost and how they heal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepen.report.differences import TICKS, place
from deepen.report.page import Html, element, fold, page, section, table
from deepen.report.plans_charts import Axis, Series, bar_chart, even_ticks, line_chart
from deepen.report.plans_look import SCRIPT, STYLE
from deepen.report.plans_map import plans_map
from deepen.report.plans_words import about_plan, command, data, ends, signed, span, words
from deepen.units import format_bytes, format_count

Document = Mapping[str, Any]
"""What `plans.json` holds."""

_WORK = {
    "actual": "the search: layers times tokens",
    "exhaustive": "every plan on everything would have been",
    "naive": "and that without shared states",
    "held_out": "scoring the best again",
    "tokens": "tokens searched on",
    "units": "windows, chats or questions of them",
}


def plans_page(document: Document) -> str:
    """The page as HTML, in one file that needs no other.

    Args:
        document: what `plans.json` holds; every text in it may come from a stranger.
    """
    name = document["model"].rstrip("/").rsplit("/", 1)[-1]
    sections = [_best(document), plans_map(document), _finalists(document), _healing(document), _depth(document)]
    sections += [_influence(document), _notes(document)]
    about = f"{document['depth']} layers; {document['candidates']:,} plans to choose from; objective: {document['objective']}"
    return page(f"Which layers of {name} to repeat", sections, about=about, style=STYLE, script=SCRIPT)


def _best(document: Document) -> Html:
    """The answer, in words and as a command."""
    if not document["plans"]:
        return element("p", "No plan passed the guard.")
    best, base = document["plans"][0], document["base"]
    told = [
        f"The best plan found adds {best['added']} layers to {document['depth']}. Its loss is {best['score']:.3f} nats per"
        f" token ({span(best)}): {signed(best['difference']['value'])} to the base's {base['score']:.3f}."
    ]
    if best["held_out"] is not None:
        told.append(f"On text that the search has not seen it is {best['held_out']:.3f}.")
    if tied := sum(plan["rank"] == best["rank"] for plan in document["plans"]) - 1:
        told.append(f"{tied} other{'s' if tied > 1 else ''} cannot be told apart from it on this text.")
    if best["healed"]:
        told.append(f"Of the healing trials, one from {_start(bool(document['best'].get('identity_init')))} ended best.")
    return element(
        "section",
        element("p", " ".join(told)),
        data("first", command(document["model"], document["best"])),
        aria_label="Answer",
    )


def _finalists(document: Document) -> Html | None:
    plans, model = document["plans"], document["model"]
    if not plans:
        return None
    guarded, healed = any(plan["guard"] for plan in plans), any(plan["healed"] for plan in plans)
    header = ["plan", "rank", "added", "to the base", "95 % interval", "held out", "compute"]
    header += ["guard, to the base"] * guarded + ["healed copies", "healed identity"] * healed
    rows = []
    for plan in plans:
        chosen = {"data_about": about_plan(plan, document["depth"]), "data_command": command(model, plan["options"])}
        button = element("button", element("code", words(plan["options"])), type="button", class_="plan", **chosen)
        row: list[object] = [
            button,
            _rank(plan, plans),
            plan["added"],
            signed(plan["difference"]["value"]),
            span(plan["difference"], signed),
            "" if plan["held_out"] is None else f"{plan['held_out']:.3f}",
            f"x {plan['cost']['flops_ratio']:.2f}",
        ]
        if guarded:
            row.append("" if plan["guard"] is None else signed(plan["guard"]["value"]))
        if healed:
            healing = {each["start"]: f"{each['value']:.3f}" for each in plan["healed"]}
            row += [healing.get(start, "") for start in ("copies", "identity")]
        rows.append(row)
    caption = (
        "Nats per token; lower is better. A plan that cannot be told apart from the one before it shares its rank. Choose"
        " a plan for its command."
    )
    return section("The best plans", table(header, rows, caption=caption, numbers=range(2, len(header))))


def _healing(document: Document) -> Html | None:
    trials = document["trials"]
    if trials is None:
        return None
    control = dict(trials["control"]["curve"])
    names = list(dict.fromkeys(trial["layers"] for trial in trials["trials"]))
    series = []
    for trial in trials["trials"]:
        points = [(tokens, loss - control[tokens]) for tokens, loss in trial["curve"]]
        labels = [f"{format_count(tokens)} tokens: {signed(value)}" for tokens, value in points]
        look = ("solid", "dot") if trial["start"] == "copies" else ("dotted", "hollow")
        name = f"{words(trial['options'])}, {_start(trial['start'] == 'identity')}"
        series.append(Series(name, points, names.index(trial["layers"]) % 6, *look, labels))
    x = Axis("tokens trained on", 0, trials["tokens"], even_ticks(0, trials["tokens"], format_count))
    y = _differences([value for each in series for _, value in each.points], "nats per token above the control")
    rows = [
        (
            element("code", words(trial["options"])),
            _start(trial["start"] == "identity"),
            _rank(trial, trials["trials"]),
            f"{trial['value']:.3f}",
            signed(trial["difference"]["value"]),
            span(trial["difference"], signed),
        )
        for trial in trials["trials"]
    ]
    told = (
        f"Each was trained for {trials['steps']} steps, on the same {trials['tokens']:,} tokens in the same order. The line at"
        f" zero is the control: the base on these tokens, which ends at {trials['control']['value']:.3f}. The intervals are of"
        " the held-out text, not of the order of the training."
    )
    header = ["plan", "start", "rank", "ends at", "to the control", "95 % interval"]
    return section(
        "After a short healing",
        element("p", told),
        line_chart(series, x, y, "Loss of each healing trial above the control's, against tokens trained on"),
        table(header, rows, caption="Where they end, in nats per token", numbers=range(3, 6)),
    )


def _depth(document: Document) -> Html | None:
    curve = document["curve"]
    if not curve:
        return None
    points = [(each["cost"]["flops_ratio"], each["difference"]) for each in curve]
    labels = [
        f"{words(each['options'])}: {signed(each['difference'])}, compute x {each['cost']['flops_ratio']:.2f}" for each in curve
    ]
    spans = [ends(each) for each in curve]
    series = [Series("", [(1.0, 0.0), *points], 0, "solid", "none")]
    kinds = ((True, "dot", "no plan that adds as much or more harms less"), (False, "hollow", "a deeper plan harms less"))
    for flag, mark, name in kinds:
        if some := [number for number, each in enumerate(curve) if each["deepest"] == flag]:
            shown, ranges = ([values[number] for number in some] for values in (points, spans))
            series.append(Series(name, shown, 0, "none", mark, [labels[number] for number in some], ranges))
    dearest = max(cost for cost, _ in points) * 1.01
    x = Axis("compute per token, by the base's", 1.0, dearest, even_ticks(1.0, dearest, lambda value: f"x {value:.3g}"))
    y = _differences([value for _, value in points], "nats per token above the base")
    rows = [
        (
            each["added"],
            element("code", words(each["options"])),
            signed(each["difference"]),
            span(each, signed),
            f"x {each['cost']['flops_ratio']:.2f}",
            format_bytes(each["cost"]["kv_bytes_per_token"]),
            format_count(each["cost"]["parameters"]),
            "better than the base" if each["front"] else "deepest for its harm" if each["deepest"] else "",
        )
        for each in curve
    ]
    header = [
        "added",
        "best plan",
        "to the base",
        "95 % interval",
        "compute",
        "KV cache per token",
        "parameters",
        "on the front",
    ]
    return section(
        "What depth costs",
        element(
            "p",
            "The best plan of each size, before any healing. Each added layer costs compute and cache on every token, for as"
            " long as the model runs.",
        ),
        line_chart(series, x, y, "Difference to the base against compute per token, for the best plan of each size"),
        fold("As numbers", table(header, rows, caption="The best plan of each size", numbers=range(2, 7))),
    )


def _influence(document: Document) -> Html | None:
    influence = document["influence"]
    if not influence:
        return None
    repeated = set(document["marks"]["repeated"])
    values = [max(each["influence"], 1e-4) for each in influence]
    low, high = 10 ** math.floor(math.log10(min(values))), max(1.0, *values) * 1.1
    ticks = [(10.0**power, f"{10.0**power:g}") for power in range(-4, 1) if low <= 10.0**power <= high]
    y = Axis("1 - cosine of in and out", low, high, ticks, math.log)
    rows = [(each["layer"], f"{each['influence']:.4f}", f"{each['norm_ratio']:.3g}") for each in influence]
    about = "How far each layer turns what runs through it; the best plan repeats the layers in orange"
    return section(
        "What each layer changes",
        bar_chart(values, [each["layer"] in repeated for each in influence], y, "layer of the base", about),
        fold(
            "As numbers",
            table(["layer", "influence", "length out / in"], rows, caption="Block influence and growth", numbers=(1, 2)),
        ),
    )


def _notes(document: Document) -> Html:
    notes = [
        *document["notes"],
        "Intervals are 95 %, by resampling windows of the text; differences are paired window by window.",
    ]
    counted = [(_WORK.get(key, key), f"{value:,}") for key, value in document["work"].items()]
    return section(
        "Notes",
        element("ul", *(element("li", note) for note in notes)),
        table(["what", "count"], counted, caption="What the search has computed", numbers=(1,)),
    )


def _rank(plan: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> Html:
    alone = sum(other["rank"] == plan["rank"] for other in plans) == 1
    return element(
        "span", plan["rank"], None if alone else " ", None if alone else element("span", "tied", class_="tied"), class_="rank"
    )


def _start(identity: bool) -> str:
    return "an identity start" if identity else "plain copies"


def _differences(values: Iterable[float], name: str) -> Axis:
    """An axis of differences; that of the colours where they lie far apart."""
    values = list(values)
    low, high = min(0.0, *values, 0.0), max(0.02, *values, 0.0)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    if high - low < 1:
        return Axis(name, low, high, even_ticks(low, high, lambda value: f"{value:+.3g}" if abs(value) > 1e-12 else "0"))
    ticks = [(tick, f"{tick:+g}" if tick else "0") for tick in TICKS if low <= tick <= high]
    return Axis(name, low, high, ticks, place)
