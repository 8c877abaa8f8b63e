"""What a training run takes of memory at its peak, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deepen.architecture import Dimensions
from deepen.checkpoint import Checkpoint
from deepen.plan import read_facts
from deepen.plan.price import FLOAT32_ADAMW, LORA_RANK, Facts, adapter_parameters

# logits that exist at once: a piece that stays in a CPU's cache, or one that fills a GPU
CPU_LOGITS, GPU_LOGITS = 2**24, 2**27
_FLOAT32, _BFLOAT16 = 4, 2
# what comes and goes leaves gaps: measured with glibc on CPUs, where they are the largest error, larger with adapters, which
# make many short-lived tensors; a guess for CUDA's own allocator
_GAPS = {"cpu": 0.5, "cuda": 0.1}
_ADAPTER_GAPS = {"cpu": 1.5, "cuda": 0.1}


@dataclass(frozen=True)
class Setup:
    """What of a run decides how much memory it takes.

    Attributes:
        sequence_length: tokens of a row.
        micro_batch: rows that go through the model at once; of pairs, both answers count.
        accumulates: whether a step has several micro-batches, so that gradients are there while activations are.
        train: which weights learn: `all`, `repeated` or `lora`.
        repeated: the layers that `repeated` trains, by their positions; empty for a model that repeats none.
        lora_rank: of the adapters of `lora`.
        activation_checkpointing: whether the activations within a layer are computed again instead of kept.
        packed: whether rows hold several documents that do not see each other, which takes a mask per layer.
        precision: what matrices are multiplied in; weights and optimizer are float32 always.
        ranks: processes over which one copy of the model is sharded; with adapters none is.
        neighbours: how many of them share the memory in question: the processes of a node on CPUs, 1 on GPUs.
        teacher: a second model in memory, that only runs.
    """

    sequence_length: int
    micro_batch: int = 1
    accumulates: bool = True
    train: str = "all"
    repeated: tuple[int, ...] = ()
    lora_rank: int = LORA_RANK
    activation_checkpointing: bool = False
    packed: bool = False
    precision: str = "float32"
    ranks: int = 1
    neighbours: int = 1
    teacher: Checkpoint | None = None


def training_bytes(source: Checkpoint, setup: Setup, device: str = "cpu") -> dict[str, int]:
    """Estimate what a training run takes at its peak, beyond what the process holds before it loads the model.

    Weights, gradients and AdamW's moments are exact; saving a state takes nothing that counts. Activations follow section 4.1
    of Korthikanti et al. 2022 (arXiv:2205.05198): what a layer keeps for its backward pass, there 34 bytes per token and
    feature; here for gated feed-forward layers, grouped-query attention that stores no attention matrix, and float32
    (`_layer_bytes`). Layers of other kinds are taken for such.

    Returns:
        Bytes by what they are for; their sum is the estimate for the memory of `device`.

    Raises:
        CheckpointError, UnsupportedModelError: as `read_architecture`.
    """
    return peak_bytes(*read_facts(source), setup, device)


def peak_bytes(facts: Facts, sizes: Dimensions, setup: Setup, device: str = "cpu") -> dict[str, int]:
    """The same from a model's facts and sizes, which may be those of a model that is only planned."""
    layers = [sum(tensor.parameters for tensor in layer) for layer in facts.layers]
    rest = sum(tensor.parameters for tensor in facts.rest)
    whole = sum(layers) + rest
    adapters = adapter_parameters([tensor for layer in facts.layers for tensor in layer], setup.lora_rank)
    learned = {"all": whole, "repeated": sum(layers[place] for place in setup.repeated), "lora": adapters}[setup.train]
    frozen = whole + (adapters if setup.train == "lora" else 0) - learned
    tokens, kind = setup.micro_batch * setup.sequence_length, device.partition(":")[0]
    shards = 1 if setup.train == "lora" else setup.ranks  # with adapters each process has the whole model
    cast = _BFLOAT16 if setup.precision == "bfloat16" else 0
    activations = _activations(sizes, setup, tokens)
    head = _head(facts.head_parameters, sizes, setup, tokens, kind)
    shares = _ADAPTER_GAPS if setup.train == "lora" else _GAPS
    gaps = int(shares.get(kind, shares["cuda"]) * (activations + head))
    per_process = {
        "weights, gradients, optimizer": (FLOAT32_ADAMW * learned + _FLOAT32 * frozen) // shards,
        "activations": activations,
        "output head": head,
        "gaps": gaps,
    }
    if not setup.accumulates:  # gradients come as activations go
        per_process["weights, gradients, optimizer"] -= min(_FLOAT32 * learned // shards, activations + head + gaps)
    if shards > 1:  # a layer, and the one after it, are whole while they compute; so are their gradients
        per_process["gathered layers"] = (cast or _FLOAT32) * (4 * max(layers) + 2 * rest)
    elif cast:
        per_process["weights in bfloat16"] = cast * (max(layers) if setup.activation_checkpointing else sum(layers))
    if setup.teacher is not None:
        theirs, their_sizes = read_facts(setup.teacher)
        weights = sum(tensor.parameters for layer in [*theirs.layers, theirs.rest] for tensor in layer)
        per_process["teacher"] = (_FLOAT32 + cast) * weights // setup.ranks + _head(
            theirs.head_parameters, their_sizes, replace(setup, train="lora"), tokens, kind
        )
    return {name: setup.neighbours * value for name, value in per_process.items()}


def _activations(sizes: Dimensions, setup: Setup, tokens: int) -> int:
    """What the backward pass needs of all layers, and of one layer what its computation holds besides."""
    first = min(setup.repeated, default=0) if setup.train == "repeated" else 0
    layers = range(first, sizes.num_hidden_layers)  # no gradient goes further down than the first layer that learns
    kept = {learns: tokens * _layer_bytes(sizes, setup, learns=learns) for learns in (True, False)}
    learning = set(layers) if setup.train != "repeated" else set(setup.repeated)
    stream = _FLOAT32 * tokens * sizes.hidden_size
    if setup.activation_checkpointing:
        stored = stream * len(layers) + max(kept[layer in learning] for layer in layers)
    else:
        stored = sum(kept[layer in learning] for layer in layers)
    return stored + max(kept.values()) + 3 * stream  # a layer's gradients; the final norm


def _layer_bytes(sizes: Dimensions, setup: Setup, *, learns: bool) -> int:
    """Bytes per token that a layer keeps for its backward pass, each product of matrices keeping what it was given.

    In numbers, for float32: of each of two norms its input, its normalised values (for the gradient of its weight) and its
    output; queries, keys, values; what attention returns; the gate before and after its activation, the other half, and their
    product. Under bfloat16 autocast norms stay float32, and each product has its own copy of its input in bfloat16.
    """
    features, queries = sizes.hidden_size, sizes.num_attention_heads * sizes.head_dim
    keys_and_values = 2 * (queries if setup.packed else sizes.num_key_value_heads * sizes.head_dim)
    attention = 2 * queries + keys_and_values + (setup.sequence_length if setup.packed else 0)
    between = sizes.intermediate_size * max(1, sizes.num_experts_per_tok)
    norms = 4 if learns and setup.train != "lora" else 2  # adapters leave the norms frozen
    inputs = 1 if learns else 0
    if setup.precision == "bfloat16":
        return (
            _FLOAT32 * norms * features
            + _BFLOAT16 * (attention + 5 * inputs * features + (3 + inputs) * between)
            + _FLOAT32 * (sizes.num_attention_heads + 2)
        )
    return _FLOAT32 * ((norms + 2 * inputs) * features + attention + (3 + inputs) * between + sizes.num_attention_heads + 2)


def _head(parameters: int, sizes: Dimensions, setup: Setup, tokens: int, kind: str) -> int:
    """What the output head holds: some logits at once, its gradient before and after it is scaled, the states and theirs."""
    logits = min(tokens * sizes.vocab_size, CPU_LOGITS if kind == "cpu" else GPU_LOGITS)
    gradients = 2 * parameters if setup.train == "all" else 0
    copies = _BFLOAT16 * parameters if setup.precision == "bfloat16" else 0
    return _FLOAT32 * (3 * logits + gradients + 3 * tokens * sizes.hidden_size) + copies
