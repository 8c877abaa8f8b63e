"""Losses against log-softmax by hand in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deepen.errors import OptionError
from deepen.likelihood import IGNORED, check_context, next_tokens, token_losses, window_losses
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
