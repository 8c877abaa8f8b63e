"""The verb behind each stage."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deepen.pipeline.steps import Step
from deepen.pipeline.together import joined


@joined
def call(step: Step, *, resume: bool) -> dict[str, Any] | None:
    """Do what a stage says; returns what it found, where it makes no model."""
    match step.stage.stage:
        case "scale":
            from deepen.scale import scale

            scale(step.source, step.out, **step.options)
        case "explore":
            from deepen.explore import explore

            found = explore(step.source, out=step.out, overwrite=not resume, **step.options)
            return {"best": found.plans[0].to_dict() if found.plans else None, "base": dict(found.base)}
        case "merge":
            from deepen.merge import merge

            merge(step.out, **step.options)
        case "pretrain":
            from deepen.train.pretrain import pretrain

            pretrain(step.source, step.out, resume=resume, **step.options)
        case "instruct":
            from deepen.train.instruct import instruct

            instruct(step.source, step.out, resume=resume, **step.options)
        case "align":
            from deepen.train.align import align

            align(step.source, step.out, resume=resume, **step.options)
        case "export":
            from deepen.export import export

            export(step.source, step.out, **step.options)
        case "evaluate":
            from deepen.evaluate import evaluate

            return evaluate(step.source, **step.options).to_dict()
        case "generate":
            from deepen.generate import generate

            return asdict(generate(step.source, **step.options))
    return None
