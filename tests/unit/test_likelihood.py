"""Losses against log-softmax by hand in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deepen.data.text import IGNORED
from deepen.errors import OptionError
from deepen.likelihood import Teacher, check_context, distillation_losses, next_tokens, token_losses, window_losses
from trainable import write_checkpoint


@pytest.fixture
def model(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, max_position_embeddings=600))


def by_hand(model, windows: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=windows).logits.double().numpy()[:, :-1]
    log_sum = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, windows.numpy()[:, 1:, None].astype(int), -1)[..., 0]
    return log_sum - picked


def test_window_losses_are_negative_log_softmax(model) -> None:
    windows = torch.randint(0, 257, (3, 530), generator=torch.Generator().manual_seed(1), dtype=torch.int32)  # over two chunks
    model.train()
    losses = window_losses(model, windows)
    assert losses.shape == (3, 529)
    assert losses.dtype == torch.float32
    assert model.training
    np.testing.assert_allclose(losses.numpy(), by_hand(model.eval(), windows), rtol=2e-6, atol=2e-6)


def test_token_losses_are_of_labelled_places_only(model) -> None:
    tokens = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(2))
    labels = next_tokens(tokens)
    assert labels[:, :-1].equal(tokens[:, 1:])
    assert (labels[:, -1] == IGNORED).all()
    assert token_losses(model, tokens, labels).sum().item() == pytest.approx(by_hand(model, tokens).sum(), rel=1e-6)
    labels[0] = IGNORED
    assert token_losses(model, tokens, labels).sum().item() == pytest.approx(by_hand(model, tokens)[1].sum(), rel=1e-6)


def test_windows_beyond_the_models_reach_are_refused(model) -> None:
    check_context(model.config, 600, "--window")
    for length in (1, 601):
        with pytest.raises(OptionError, match=f"--window: the model takes 2 to 600 tokens at once, not {length}"):
            check_context(model.config, length, "--window")


# The head in pieces ---------------------------------------------------------------------------------------------------------


def half_labelled(rows: int = 3, length: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 257, (rows, length), generator=generator)
    labels = next_tokens(tokens)
    labels[torch.rand(rows, length, generator=generator) < 0.5] = IGNORED
    return tokens, labels


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_alike(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture(params=[7, 64, 10**6], ids=["pieces of 7", "pieces of 64", "one piece"])
def pieces(request, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepen import likelihood

    monkeypatch.setattr(likelihood, "CPU_LOGITS", 257 * request.param)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weighted", [False, True], ids=["a sum", "places of unequal weight"])
@pytest.mark.usefixtures("pieces")
def test_a_head_in_pieces_has_the_losses_and_gradients_of_whole_logits(tmp_path: Path, tied: bool, weighted: bool) -> None:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, tie_word_embeddings=tied))
    tokens, labels = half_labelled()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4)) if weighted else torch.ones(labels.shape)
    losses = token_losses(model, tokens, labels)
    logits = model(input_ids=tokens).logits
    whole = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    torch.testing.assert_close(losses, whole, rtol=1e-5, atol=1e-5)
    assert (losses[labels == IGNORED] == 0).all()
    assert_alike(gradients(model, (losses * weights).sum() / 7), gradients(model, (whole * weights).sum() / 7))


@pytest.mark.usefixtures("pieces")
def test_a_frozen_head_passes_the_gradient_on(model) -> None:
    tokens, labels = half_labelled()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    found = gradients(model, token_losses(model, tokens, labels).sum())
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    assert_alike(found, gradients(model, loss))
    assert all("layers.1" in name for name in found)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_learning_from_a_teacher_is_the_mixture_by_hand(model, tmp_path: Path, share: float) -> None:
    from transformers import AutoModelForCausalLM

    other = write_checkpoint(tmp_path / "teacher", num_hidden_layers=1, hidden_size=16, intermediate_size=24)
    teacher = AutoModelForCausalLM.from_pretrained(other).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)  # a teacher that is sure of something
    tokens, labels = half_labelled()
    loss, token = distillation_losses(model, tokens, labels, None, Teacher(teacher, share))
    logs = model(input_ids=tokens).logits.log_softmax(-1)
    wanted = teacher(input_ids=tokens).logits.log_softmax(-1)
    asked = labels != IGNORED
    by_hand = -logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * asked
    divergence = (wanted.exp() * (wanted - logs)).sum(-1) * asked
    torch.testing.assert_close(token, by_hand, rtol=1e-5, atol=1e-5)
    mixture = (1 - share) * by_hand + share * divergence
    torch.testing.assert_close(loss, mixture, rtol=1e-5, atol=1e-5)
    assert not token.requires_grad
    assert_alike(gradients(model, loss.sum()), gradients(model, mixture.sum()))


def test_a_model_that_changes_its_logits_is_read_as_a_whole(tmp_path: Path) -> None:
    """Gemma 2 squashes its logits after the head, which the head itself cannot know."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Gemma2Config(vocab_size=257, num_hidden_layers=2, final_logit_softcapping=0.05, **sizes)
    model = Gemma2ForCausalLM(config).eval()
    tokens, labels = half_labelled()
    losses = token_losses(model, tokens, labels)
    logits = model(input_ids=tokens).logits
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(losses.flatten(), whole)
    uncapped = torch.atanh(logits / 0.05) * 0.05
    other = torch.nn.functional.cross_entropy(uncapped.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    assert (other - whole).abs().max() > 1e-3, "the cap makes a difference"


def test_packed_sequences_have_the_losses_and_gradients_of_separate_ones(model) -> None:
    lengths = (17, 9, 23)
    rows = [torch.randint(0, 257, (1, length), generator=torch.Generator().manual_seed(length)) for length in lengths]
    labels = [next_tokens(row) for row in rows]
    separate = torch.cat([token_losses(model, *pair)[0] for pair in zip(rows, labels, strict=True)])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = token_losses(model, torch.cat(rows, 1), torch.cat(labels, 1), positions)[0]
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)
    leaky = token_losses(model, torch.cat(rows, 1), torch.cat(labels, 1))[0]
    assert (leaky - separate).abs().max() > 1e-4, "without positions it would see the others"
    assert_alike(gradients(model, packed.sum()), gradients(model, separate.sum()))


def test_bfloat16_multiplication_is_close(model) -> None:
    tokens, labels = half_labelled()
    exact = gradients(model, token_losses(model, tokens, labels).sum())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(model, token_losses(model, tokens, labels).sum())
    assert rounded.keys() == exact.keys()
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() < 0.05 * gradient.norm(), name
