"""The number format of matrix products, and the scaling of gradients."""

import pytest
import torch

from so_clip.runtime.precision import Precision, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_have_the_precision_and_weights_stay_float32(name, dtype):
    layer = torch.nn.Linear(4, 4)
    with Precision(name, CPU).autocast():
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(2, 4)).dtype == torch.float32, "autocast outlived its context"


@pytest.mark.parametrize(("name", "scales"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_scales_gradients(name, scales):
    scaler = Precision(name, CPU).scaler
    assert scaler.is_enabled() == scales
    loss = torch.ones(())
    assert (scaler.scale(loss) > loss).item() == scales


def test_auto_is_float32_on_the_cpu_and_bf16_on_a_gpu():
    assert Precision("auto", CPU).name == "fp32"
    assert pick_precision("auto", CPU) == "fp32"
    cuda = torch.device("cuda")
    has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False)
    assert pick_precision("auto", cuda) == ("bf16" if has_bf16 else "fp32")
    assert [pick_precision(name, cuda) for name in ("fp32", "fp16")] == ["fp32", "fp16"]
