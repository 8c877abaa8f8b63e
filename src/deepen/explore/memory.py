"""What a search holds in memory, worked out before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from deepen.architecture import Dimensions
from deepen.errors import ResourceError
from deepen.likelihood import CPU_LOGITS, GPU_LOGITS
from deepen.plan.price import Facts
from deepen.units import format_bytes

_MOST_PLANS = 512  # on their way at once; more are no faster
_CHUNK_TOKENS = {"cpu": 1024, "cuda": 16384}
_ROWS_TOKENS = {"cpu": 4096, "cuda": 65536}
_FEWEST_PLANS = 8


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

    def __str__(self) -> str:
        """In words, for the user."""
        parts = ", ".join(f"{format_bytes(size)} {name}" for name, size in self.needed.items() if size)
        return f"Memory: {format_bytes(sum(self.needed.values()))} ({parts})"


def fit(
    facts: Facts,
    sizes: Dimensions,
    *,
    free: int,
    element: int,
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
        stream: whether only two layers are held at a time.
        recompute: whether the base's hidden states are not kept.
        kind: of the device, `cpu` or `cuda`.
        longest: tokens of the longest unit, which is never cut.

    Raises:
        ResourceError: not even the smallest setting fits, with what is needed and what would help.
    """
    layers = [sum(tensor.parameters for tensor in layer) for layer in facts.layers]
    rest = sum(tensor.parameters for tensor in facts.rest)
    weights = rest + (2 * max(layers) if stream else sum(layers))
    logits = min(CPU_LOGITS if kind == "cpu" else GPU_LOGITS, _ROWS_TOKENS.get(kind, 4096) * sizes.vocab_size)

    def setting(chunk_tokens: int, plans: int) -> Memory:
        rows_tokens = max(chunk_tokens, min(_ROWS_TOKENS.get(kind, _ROWS_TOKENS["cuda"]), plans * chunk_tokens))
        state = chunk_tokens * sizes.hidden_size * element
        # of a layer: input, output and norms; queries, keys, values and their rotations; gate, up and their product
        wide = 6 * sizes.hidden_size + 6 * sizes.num_attention_heads * sizes.head_dim
        wide += 4 * sizes.intermediate_size * max(1, sizes.num_experts_per_tok)
        return Memory(
            chunk_tokens,
            rows_tokens,
            plans,
            recompute,
            {
                "two layers at a time and the rest" if stream else "weights": weights * element,
                "hidden states of the base": 0 if recompute else (len(layers) + 1) * state,
                f"states of {plans} plans": plans * state,
                "one layer at work": rows_tokens * wide * element,
                "output head": logits * (4 + 2 * element),
            },
        )

    chunk = max(longest, _CHUNK_TOKENS.get(kind, _CHUNK_TOKENS["cuda"]) * (8 if stream else 1))
    while True:
        plans = _MOST_PLANS
        while plans >= _FEWEST_PLANS:
            if sum((found := setting(chunk, plans)).needed.values()) <= free:
                return found
            plans //= 2
        if chunk <= max(longest, 128):
            break
        chunk = max(longest, chunk // 2, 128)
    smallest = setting(chunk, _FEWEST_PLANS)
    advice = "take a smaller model, or a machine with more memory"
    if not stream and sum(fit_stream(facts, sizes, chunk, element).values()) <= free:
        advice = "pass --stream, which holds two layers at a time"
    elif not recompute and sum(smallest.needed.values()) - smallest.needed["hidden states of the base"] <= free:
        advice = "pass --recompute, which keeps no hidden states of the base and computes them again"
    raise ResourceError(f"{smallest}, and {format_bytes(free)} are free", where="--memory", next=advice)


def fit_stream(facts: Facts, sizes: Dimensions, chunk: int, element: int) -> dict[str, int]:
    """The least that a streamed search needs."""
    layers = [sum(tensor.parameters for tensor in layer) for layer in facts.layers]
    rest = sum(tensor.parameters for tensor in facts.rest)
    state = chunk * sizes.hidden_size * element
    return {"weights": (rest + 2 * max(layers)) * element, "states": (len(layers) + 1 + 2 * _FEWEST_PLANS) * state}
