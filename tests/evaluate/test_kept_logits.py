"""Kept logits give the same predictions, also with ties and with logits beyond float16."""

import pytest
import torch
from torch import Tensor

from so_clip.evaluate.evaluator import classify

CPU = torch.device("cpu")
CASES = {
    "logits of CLIP": lambda random: 25 + 3 * random,
    "equal logits": lambda random: (2 * random).round(),
    "all logits equal": lambda random: torch.full_like(random, 7),
    "differences that float16 cannot hold": lambda random: 100 + 1e-5 * random.round(),
    "logits near 0": lambda random: 1e-8 * random,
    "logits beyond float16": lambda random: 1e6 * random,
}


@pytest.mark.parametrize("name", CASES)
def test_kept_logits_have_the_predictions_and_ranks_of_the_model(name):
    random_NK = torch.randn(300, 9, generator=torch.Generator().manual_seed(0))
    logits_NK: Tensor = CASES[name](random_NK)
    label_N = torch.arange(300) % 9
    found = classify(lambda image_BD: image_BD, logits_NK, label_N, CPU, keep_logits=True)
    assert found.kept is not None
    kept_NK, rank_N = found.kept.logits_NK, found.kept.rank_N
    assert kept_NK.dtype == torch.float16
    assert kept_NK.isfinite().all()
    assert torch.equal(kept_NK.argmax(dim=1), found.predicted_N)
    assert ((kept_NK == 0).sum(dim=1) == 1).all()
    assert torch.equal(rank_N == 0, found.predicted_N == label_N)
    for label, rank, row_K in zip(label_N.tolist(), rank_N.tolist(), logits_NK, strict=True):
        above, equal = int((row_K > row_K[label]).sum()), int((row_K == row_K[label]).sum())
        assert rank == 0 or max(above, 1) <= rank <= max(above + equal - 1, 1)


def test_kept_logits_are_close_to_the_confidences():
    generator = torch.Generator().manual_seed(1)
    logits_NK = 25 + 4 * torch.randn(5000, 40, generator=generator)
    label_N = torch.zeros(5000, dtype=torch.int64)
    found = classify(lambda image_BD: image_BD, logits_NK, label_N, CPU, keep_logits=True)
    assert found.kept is not None
    kept_NK = found.kept.logits_NK.double().softmax(dim=1)
    exact_NK = logits_NK.double().softmax(dim=1)
    assert (kept_NK - exact_NK).abs().max() < 2e-4
