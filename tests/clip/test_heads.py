"""Logits out of embeddings."""

import pytest
import torch

from so_clip.clip.heads import CosineHead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_are_scaled_in_float32_autocast_or_not(dtype):
    draw = torch.Generator().manual_seed(0)
    image_BD = torch.nn.functional.normalize(torch.randn(5, 8, generator=draw), dim=-1)
    class_KD = torch.nn.functional.normalize(torch.randn(3, 8, generator=draw), dim=-1)
    modes = []

    def classes():
        modes.append(torch.is_autocast_enabled("cpu"))
        return class_KD

    head = CosineHead(50.0)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits_BK = head(image_BD, classes)
    expected = 50 * image_BD.double() @ class_KD.double().T
    torch.testing.assert_close(logits_BK.double(), expected, rtol=1e-6, atol=1e-5)
    assert logits_BK.dtype == torch.float32
    assert modes == [dtype != torch.float32], "the text tower lost its precision"
