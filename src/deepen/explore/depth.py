"""What depth costs and what it harms: the best plan of each size, and the ones that are worth choosing among."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepen.explore.results import Scored


def depth_curve(plans: Sequence[Scored]) -> list[dict[str, Any]]:
    """The best plan for each number of added layers, fewest first.

    Plans are compared by their paired difference to the base, which is fair between plans that were scored on different
    amounts of text.

    Args:
        plans: all that were scored.

    Returns:
        For each size the plan's `layers`, `options`, `added`, `difference` with `low` and `high`, `held_out`, `cost`, and two
        flags. `front`: nothing that costs as little or less, the base included, has a loss as low. `deepest`: nothing that
        adds as much or more harms as little; where every added layer harms, as plain copies do before any healing, these are
        the plans to choose among.
    """
    best: dict[int, Scored] = {}
    for plan in plans:
        added = int(plan.cost["added"])
        if added not in best or plan.difference.value < best[added].difference.value:
            best[added] = plan
    curve = [best[added] for added in sorted(best)]
    return [
        {
            "added": int(plan.cost["added"]),
            "layers": plan.candidate.slices,
            "options": dict(plan.candidate.options),
            "difference": plan.difference.value,
            "low": plan.difference.low,
            "high": plan.difference.high,
            "held_out": None if plan.held_out is None else plan.held_out.value,
            "cost": dict(plan.cost),
            "front": plan.difference.value < 0
            and all(plan.difference.value < other.difference.value for other in curve if _cheaper(other, plan)),
            "deepest": all(plan.difference.value < other.difference.value for other in curve[place + 1 :]),
        }
        for place, plan in enumerate(curve)
    ]


def _cheaper(one: Scored, other: Scored) -> bool:
    return one is not other and one.cost["flops_per_token"] <= other.cost["flops_per_token"]
