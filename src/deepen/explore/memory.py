"""What a search holds in memory, worked out before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from deepen.architecture import Dimensions
from deepen.errors import ResourceError
from deepen.plan.memory import CPU_LOGITS, GPU_LOGITS
from deepen.plan.price import Facts
from deepen.units import format_bytes

_MOST_PLANS = 128  # on their way at once; streamed, more share the reading of a layer
_SMALLEST_CHUNK = 128
_CHUNK_TOKENS = {"cpu": 1024, "cuda": 16384}
_ROWS_TOKENS = {"cpu": 1024, "cuda": 65536}  # what a layer computes at once stays in a CPU's cache


@dataclass(frozen=True)
class Memory:
    """What a search may hold at once, and what that takes.

    Attributes:
        chunk_tokens: tokens of the chunk that is worked on.
        rows_tokens: tokens that go through a layer at once.
        plans: how many plans are on their way at once.
        recompute: whether the base's hidden states are computed again for each group of plans instead of kept.
        needed: bytes by what they are for.
    """

    chunk_tokens: int
    rows_tokens: int
    plans: int
    recompute: bool
    needed: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.needed.values())

    def __str__(self) -> str:
        """In words, for the user."""
        parts = ", ".join(f"{format_bytes(size)} {name}" for name, size in self.needed.items() if size)
        return f"{format_bytes(self.total)} of memory ({parts})"


def fit(
    facts: Facts,
    sizes: Dimensions,
    *,
    free: int,
    element: int,
    plans: int,
    stream: bool,
    recompute: bool,
    kind: str = "cpu",
    longest: int = 0,
) -> Memory:
    """The largest setting that fits.

    Args:
        facts: the base's tensors.
        sizes: the base's sizes.
        free: bytes there are.
        element: bytes per element of what is computed.
        plans: how many there are to be scored.
        stream: whether only two layers are held at a time.
        recompute: whether the base's hidden states are not kept.
        kind: of the device, `cpu` or `cuda`.
        longest: tokens of the longest unit, which is never cut.

    Raises:
        ResourceError: not even the smallest setting fits, with what is needed and what would help.
    """

    def setting(chunk_tokens: int, together: int, *, streamed: bool = stream, again: bool = recompute) -> Memory:
        return _setting(facts, sizes, chunk_tokens, together, element=element, kind=kind, stream=streamed, recompute=again)

    most = min(plans, _MOST_PLANS * (4 if stream else 1))
    chunk = max(longest, _CHUNK_TOKENS.get(kind, _CHUNK_TOKENS["cuda"]) * (8 if stream else 1))
    while True:
        together = most
        while together:
            if (found := setting(chunk, together)).total <= free:
                return found
            together //= 2
        if chunk <= max(longest, _SMALLEST_CHUNK):
            break
        chunk = max(longest, chunk // 2, _SMALLEST_CHUNK)
    advice = "take a smaller model, or a machine with more memory"
    if not stream and setting(chunk, 1, streamed=True).total <= free:
        advice = "pass --stream, which holds two layers at a time"
    if not recompute and setting(chunk, 1, again=True).total <= free:
        advice = "pass --recompute, which keeps no hidden states of the base but computes them again for each group of plans"
    raise ResourceError(f"a search takes {setting(chunk, 1)}, and {format_bytes(free)} are free", where="--memory", next=advice)


def _setting(
    facts: Facts, sizes: Dimensions, chunk: int, plans: int, *, element: int, kind: str, stream: bool, recompute: bool
) -> Memory:
    layers = [sum(tensor.parameters for tensor in layer) for layer in facts.layers]
    rest = sum(tensor.parameters for tensor in facts.rest)
    rows = max(chunk, min(_ROWS_TOKENS.get(kind, _ROWS_TOKENS["cuda"]), plans * chunk))
    state = chunk * sizes.hidden_size * element
    # of a layer: input, output and norms; queries, keys, values and their rotations; gate, up and their product
    wide = 6 * sizes.hidden_size + 6 * sizes.num_attention_heads * sizes.head_dim
    wide += 4 * sizes.intermediate_size * max(1, sizes.num_experts_per_tok)
    logits = min(CPU_LOGITS if kind == "cpu" else GPU_LOGITS, rows * sizes.vocab_size)
    needed = {
        "weights, of two layers at a time" if stream else "weights": element
        * (rest + (2 * max(layers) if stream else sum(layers))),
        "hidden states of the base": 0 if recompute else (len(layers) + 1) * state,
        # what is computed again waits, too, for the plans that begin with it
        f"states of {plans} plans at once": (2 if recompute else 1) * plans * state,
        "one layer at work": rows * wide * element,
        "output head": logits * (4 + 2 * element),
    }
    return Memory(chunk, rows, plans, recompute, needed)
