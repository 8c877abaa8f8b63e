"""Scores of plans are those of the written models; states are shared; the work that is counted is the work that is done."""

from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
from deepen.checkpoint import open_checkpoint
from deepen.errors import OptionError, UnsupportedModelError
from deepen.explore.candidates import KINDS, candidates
from deepen.explore.network import Network, resident
from deepen.explore.stream import streamed
from deepen.explore.sweep import evaluations, sweep
from deepen.likelihood import next_tokens, window_losses
from deepen.model import deepened, load
from deepen.plan import parse_plan, read_architecture
from deepen.scale import scale

BASE = tuple(range(6))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def windows(count: int = 2) -> torch.Tensor:
    return torch.randint(3, families.VOCABULARY, (count, 40), generator=torch.Generator().manual_seed(1))


def network_of(folder: Path) -> Network:
    model, _ = load(folder)
    return resident(model, read_architecture(open_checkpoint(folder))[0])


def swept(
    network: Network, plans: list[tuple[int, ...]], tokens: torch.Tensor, *, cached: bool, rows: int = 6
) -> dict[int, Any]:
    """The losses of each plan, shape (windows, length - 1)."""
    hidden, told = network.enter(tokens)
    known = [hidden]
    for index in range(network.depth if cached else 0):
        with network.open_layer(index) as layer:
            known.append(network.run(layer, known[-1], told[index]))
    found: dict[int, Any] = {}
    for numbers, states in sweep(network, plans, known, told, rows):
        labels = next_tokens(tokens).repeat(len(numbers), 1)
        losses = network.leave(states, tokens[:1], labels)[:, :-1]
        for number, part in zip(numbers, losses.chunk(len(numbers)), strict=True):
            assert number not in found
            found[number] = part
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "gemma3_text", "gemma2", "granite", "mixtral"])
@pytest.mark.parametrize("cached", [True, False])
def test_every_plan_has_the_losses_of_the_virtual_model(family: str, cached: bool, tmp_path: Path) -> None:
    # prompts of 40 tokens, sliding windows of 8: layer types matter
    folder = families.make_checkpoint(family, tmp_path / "model")
    network, tokens = network_of(folder), windows()
    plans = [candidate.layers for candidate in candidates(6, add=3)]
    found = swept(network, [BASE, *plans], tokens, cached=cached)
    assert sorted(found) == list(range(len(plans) + 1))
    torch.testing.assert_close(found[0], window_losses(network.model, tokens), rtol=1e-5, atol=1e-5)
    for number in range(1, len(plans) + 1, 4):
        expected = window_losses(deepened(network.model, folder, {"layers": slices(plans[number - 1])}), tokens)
        torch.testing.assert_close(found[number], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_plan_has_the_losses_of_the_written_model(family: str, tmp_path: Path) -> None:
    folder = families.make_checkpoint(family, tmp_path / "model")
    tokens = windows()
    for number, candidate in enumerate(candidates(6, add=2)[::5]):
        scale(folder, tmp_path / str(number), **candidate.options)
        expected = window_losses(load(tmp_path / str(number))[0], tokens)
        found = swept(network_of(folder), [candidate.layers], tokens, cached=True)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def slices(layers: tuple[int, ...]) -> str:
    return ",".join(f"{layer}:{layer + 1}" for layer in layers)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.make_checkpoint("llama", tmp_path_factory.mktemp("explore") / "model")


@pytest.mark.parametrize(("add", "cached"), [(2, True), (3, False), (None, True)])
def test_the_work_that_is_counted_is_done(llama: Path, add: int | None, cached: bool) -> None:
    network, tokens = network_of(llama), windows(1)
    kinds = KINDS if add else ("repeat",)
    plans = [candidate.layers for candidate in candidates(6, add=add, kinds=kinds)]
    hidden, told = network.enter(tokens)
    known = [hidden]
    for index in range(6 if cached else 0):
        known.append(network.run(network.layers[index], known[-1], told[index]))
    done = 0

    def count(_module: Any, inputs: Any, _output: Any) -> None:
        nonlocal done
        done += len(inputs[0])

    for layer in network.layers:
        layer.register_forward_hook(count)
    for _ in sweep(network, plans, known, told, 4):
        pass
    assert done == evaluations(plans, len(known))


def test_a_block_costs_the_layers_from_its_beginning() -> None:
    for candidate in candidates(30, kinds=("repeat",)):
        first = int(candidate.options["repeat"].split(":")[0])
        assert evaluations([candidate.layers], 31) == 30 - first
    everything = [candidate.layers for candidate in candidates(30, kinds=("repeat",))]
    assert len(everything) == 30 * 31 // 2
    assert evaluations(everything, 31) == sum((30 - first) ** 2 for first in range(30))
    # what begins alike is shared: the second pass of a block that is run two, three or four times
    alike = [parse_plan(8, repeat=f"2:4x{times}").layers for times in (2, 3, 4)]
    assert evaluations(alike, 9) == (2 + 4) + (2 + 4) + (2 + 4)
    assert evaluations([tuple(range(8))], 1) == 8


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(1, 12))
def test_every_kind_is_what_its_name_says(depth: int, add: int) -> None:
    try:
        found = candidates(depth, add=add)
    except OptionError:
        assert add > depth
        assert not any(add % size == 0 for size in range(1, depth + 1))
        return
    plans = [candidate.layers for candidate in found]
    assert len(set(plans)) == len(plans)
    blocks = [(i, j) for i in range(depth) for j in range(i + 1, depth + 1)]
    expected = {(*range(j), *range(i, depth)) for i, j in blocks if j - i == add}
    expected |= {(*range(depth - m), *range(m, depth)) for m in range(depth) if depth - 2 * m == add}
    expected |= {
        (*range(i), *(list(range(i, j)) * times), *range(j, depth))
        for i, j in blocks
        for times in range(3, add + 2)
        if (times - 1) * (j - i) == add
    }
    expected |= {
        tuple(layer for layer in range(depth) for _ in range(2 if i <= layer < j else 1)) for i, j in blocks if j - i == add
    }
    expected |= {
        (*range(j), *range(i, end), *range(k, depth))
        for i, j in blocks
        for k, end in blocks
        if j <= k and j - i + end - k == add
    }
    assert set(plans) == expected
    for candidate in found:
        assert parse_plan(depth, **candidate.options).layers == candidate.layers
        assert len(candidate.layers) == depth + add
        assert all(b <= a + 1 for a, b in pairwise(candidate.layers))


def test_solars_plan_is_called_by_its_name() -> None:
    named = {candidate.layers: candidate.options for candidate in candidates(30, add=14)}
    assert named[parse_plan(30, drop=8).layers] == {"drop": 8}
    assert named[parse_plan(30, repeat="5:19").layers] == {"repeat": "5:19"}


def test_spaces_of_no_plan_and_of_more_than_a_million_are_refused() -> None:
    with pytest.raises(OptionError, match="there is no such plan"):
        candidates(4, add=3, allowed=lambda _: False)
    with pytest.raises(OptionError, match=r"more than 1,000,000 plans[\s\S]*--add"):
        candidates(90, kinds=("union",))
    with pytest.raises(OptionError, match="no kind of plan"):
        candidates(4, add=2, kinds=("twice",))


def test_a_model_that_is_not_the_sum_of_its_layers_is_refused(llama: Path) -> None:
    network = network_of(llama)

    @contextmanager
    def another(index: int) -> Any:
        yield network.layers[(index + 1) % 6]

    network.check_identity(windows(1))
    with pytest.raises(UnsupportedModelError, match="family llama cannot be scored exactly"):
        Network(network.model, network.layers, another).check_identity(windows(1))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
def test_a_streamed_model_scores_the_same_and_holds_one_layer(family: str, tmp_path: Path) -> None:
    folder = families.make_checkpoint(family, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    stream = streamed(checkpoint, read_architecture(checkpoint)[0], dtype="float32", device=torch.device("cpu"))
    held: list[int] = []

    def count(*_: Any) -> None:
        held.append(sum(any(not each.is_meta for each in layer.parameters()) for layer in stream.layers))

    for layer in stream.layers:
        layer.register_forward_pre_hook(count)
    tokens = windows()
    stream.check_identity(tokens[:1])
    plans = [candidate.layers for candidate in candidates(6, add=2)]
    found, expected = swept(stream, plans, tokens, cached=True), swept(network_of(folder), plans, tokens, cached=True)
    assert max(held) == 1
    assert all(torch.equal(found[number], expected[number]) for number in expected)
    count()
    assert held[-1] == 0


def test_tensors_that_are_stored_otherwise_than_computed_are_not_streamed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(families.make_checkpoint("mixtral", tmp_path / "model"))
    with pytest.raises(UnsupportedModelError, match="family mixtral computes with other tensors"):
        streamed(checkpoint, read_architecture(checkpoint)[0], dtype="float32", device=torch.device("cpu"))
