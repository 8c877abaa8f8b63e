"""deepen: make language models deeper, heal them, judge them and run them.

The verbs of the command line are functions here, with the same names. Each is imported when it is first used, so that
`import deepen` costs nothing and needs no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepen.apps.summarize import summarize
    from deepen.apps.support import support
    from deepen.apps.tutor import tutor
    from deepen.apps.write import write
    from deepen.batch import batch
    from deepen.chat import chat
    from deepen.doctor import doctor
    from deepen.evaluate import evaluate
    from deepen.explore import explore
    from deepen.export import export
    from deepen.generate import generate
    from deepen.merge import merge
    from deepen.model import load
    from deepen.pipeline import run
    from deepen.plan import Plan, plan
    from deepen.scale import scale
    from deepen.serve import serve
    from deepen.synthesize import Synthesis, synthesize
    from deepen.train.align import align
    from deepen.train.instruct import instruct
    from deepen.train.pretrain import pretrain
    from deepen.verify import verify

__all__ = [
    "Plan",
    "Synthesis",
    "align",
    "batch",
    "chat",
    "doctor",
    "evaluate",
    "explore",
    "export",
    "generate",
    "instruct",
    "load",
    "merge",
    "plan",
    "pretrain",
    "run",
    "scale",
    "serve",
    "summarize",
    "support",
    "synthesize",
    "tutor",
    "verify",
    "write",
]
_HOME = {
    "Plan": "deepen.plan",
    "Synthesis": "deepen.synthesize",
    "align": "deepen.train.align",
    "batch": "deepen.batch",
    "chat": "deepen.chat",
    "doctor": "deepen.doctor",
    "evaluate": "deepen.evaluate",
    "explore": "deepen.explore",
    "export": "deepen.export",
    "generate": "deepen.generate",
    "instruct": "deepen.train.instruct",
    "load": "deepen.model",
    "merge": "deepen.merge",
    "plan": "deepen.plan",
    "pretrain": "deepen.train.pretrain",
    "run": "deepen.pipeline",
    "scale": "deepen.scale",
    "serve": "deepen.serve",
    "summarize": "deepen.apps.summarize",
    "support": "deepen.apps.support",
    "synthesize": "deepen.synthesize",
    "tutor": "deepen.apps.tutor",
    "verify": "deepen.verify",
    "write": "deepen.apps.write",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("deepen")
    if name not in _HOME:
        raise AttributeError(f"module 'deepen' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing `deepen.scale` would bind the module over the verb of the same name; the verb stays."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
