"""Which layers to repeat: search the layer plan instead of guessing it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepen.data.text import Paths
from deepen.errors import OptionError
from deepen.explore.candidates import KINDS
from deepen.journal import Journal
from deepen.output import check_target, new_folder
from deepen.progress import say

if TYPE_CHECKING:
    from deepen.explore.results import Exploration

__all__ = ["KINDS", "explore"]
_JOURNAL, _TRIALS = "journal.jsonl", "trials"


def explore(
    model: str | Path,
    *,
    data: Paths,
    out: str | Path,
    add: int | None = None,
    budget: str | float | None = None,
    kinds: Sequence[str] = KINDS,
    tokens: str | int = "8k",
    window: int = 256,
    held_out: Paths | None = None,
    held_out_tokens: str | int | None = None,
    keep: int = 10,
    objective: str = "perplexity",
    guard: Paths | None = None,
    exhaustive: bool = False,
    heal: int | None = None,
    template: str | Path = "model",
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    memory: str | int | None = None,
    stream: bool = False,
    recompute: bool = False,
    overwrite: bool = False,
) -> Exploration:
    """Search the layer plans of a model for those that harm it least, or help it, before any training.

    Plans are scored exactly: what a plan scores is what the written model would score. The base's hidden states are computed
    once, and plans that begin alike share theirs. Unless `exhaustive`, a guess from one pass of the base picks plans to begin
    with, and successive halving scores the better ones on more text. The best are scored again on text that the search has not
    seen; by that they are ranked, and plans that cannot be told apart share a place.

    An interrupted search is continued by the same call.

    Args:
        model: a checkpoint folder or a Hub id.
        data: text, chats (the assistant's tokens are scored), or questions with choices; see `objective`.
        out: the folder to make: `plans.json`, `best.yaml`, `report.html` and pictures; see `write_report`.
        add: how many layers the plans add.
        budget: how much a token may cost, as a multiple of the base's forward pass, such as `"1.3x"`. Without `add` and
            `budget` it is 1.5.
        kinds: `repeat` (a block i:j twice), `drop` (depth up-scaling), `double` (each layer of a block twice in place), `times`
            (a block three times or more), `union` (two blocks, each twice).
        tokens: of the data, to search on.
        window: tokens that the model sees at once.
        held_out: other data, for the scores that are reported; by default the data's next tokens.
        held_out_tokens: how many of it; as many as `tokens` by default.
        keep: how many plans are scored again on held-out text. The best of every other size follows them in the report.
        objective: `perplexity`; `choices`: the nats of the right choice among the choices, by mean log-likelihood per token; or
            `mixture`: the mean of both.
        guard: data on which a plan must not be worse than the base by more than the interval of their difference; plans that
            are, are left out.
        exhaustive: score every plan on all tokens.
        heal: steps for which the best plans (from plain copies, and from an identity start), `--drop` of their sizes and the
            base are trained, on the same 1,024 tokens of the data in each step; the ranking is then by where they end.
        template: of chats; see `deepen instruct`.
        seed: of the bootstrap.
        device: the CPU by default.
        dtype: by default the checkpoint's own, but float32 on the CPU, where it is faster.
        memory: the most that may be used, such as `"16GB"`; by default most of what is free.
        stream: hold one layer at a time and read it from the checkpoint when it is needed.
        recompute: compute the base's hidden states again for each group of plans instead of keeping them.
        overwrite: replace `out`.

    Returns:
        What was found.

    Raises:
        OptionError: an option out of its range, or no plan or more than a million of them.
        DataError: the data is missing, malformed or too little for that many plans.
        CheckpointError, UnsupportedModelError: the model is broken, cannot be deepened, or its plans cannot be scored exactly.
        ResourceError: it does not fit into memory.
        OutputError: `out` exists, or a half-done search for it was made with other options.
    """
    from deepen.explore.finals import heal_finalists
    from deepen.explore.report import write_report
    from deepen.explore.setup import Settings, prepare, run

    if keep < 1:
        raise OptionError(f"{keep} plans are none", where="--keep", next="use 1 or more")
    if heal is not None and heal < 1:
        raise OptionError(f"{heal} steps heal nothing", where="--heal", next="use 20 or more")
    settings = Settings(
        model=str(model),
        data=_words(data),
        add=add,
        budget=budget,
        kinds=tuple(kinds),
        tokens=tokens,
        window=window,
        held_out=None if held_out is None else _words(held_out),
        held_out_tokens=held_out_tokens,
        keep=keep,
        objective=objective,
        guard=None if guard is None else _words(guard),
        exhaustive=exhaustive,
        template=str(template),
        seed=seed,
        device=device or "cpu",
        dtype=dtype,
        memory=memory,
        stream=stream,
        recompute=recompute,
    )
    check_target(out, overwrite=overwrite)
    prepared = prepare(settings)
    with new_folder(out, overwrite=overwrite, resume=not overwrite) as folder:
        with Journal(folder / _JOURNAL) as journal:
            found = run(prepared, journal, Path(out))
        if heal is not None and found.plans:
            found = heal_finalists(found, prepared, steps=heal, folder=folder / _TRIALS)
        write_report(folder, found)
        (folder / _JOURNAL).unlink()
        shutil.rmtree(folder / _TRIALS, ignore_errors=True)
    if found.plans:
        best = found.plans[0]
        say(f"Best: {best.candidate.slices}, {best.difference.value:+.4f} nats per token against the base")
    return found


def _words(data: Paths) -> tuple[str, ...]:
    return (str(data),) if isinstance(data, str | Path) else tuple(str(path) for path in data)
