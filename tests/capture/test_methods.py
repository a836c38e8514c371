"""Every method with captured steps, emulated on the CPU, against eager steps."""

import pytest
import torch

from so_clip.errors import InputError
from tests.helpers.battery_parts import TRAINED
from tests.helpers.battery_rows import cases
from tests.helpers.captured_runs import captured, trained

FAST = ("taskres",)
# Methods whose steps stay eager, with the reason.
EAGER = {
    "galore": "the step of SavedGaLore is not made for a CUDA graph",
}


@pytest.mark.parametrize("method", cases(TRAINED, FAST))
def test_captured_steps_of_every_method_equal_eager_ones(method):
    done = captured(method)
    if method in EAGER:
        assert done.adaptation.graph == f"eager: {EAGER[method]}"
        assert done.recordings == 0
        return
    assert done.adaptation.graph == "captured"
    assert done.recordings >= 2  # batches of 3 images, and of the last 2
    eager = captured(method, records=False)
    assert eager.recordings == 0
    assert done.losses == eager.losses
    assert torch.equal(done.logits_BK, eager.logits_BK)
    for name, value in eager.tensors.items():
        assert torch.equal(done.tensors[name], value), name
    # The first steps before rounding is amplified.
    assert done.losses[:14] == pytest.approx(trained(method).losses[:14], rel=1e-3, abs=1e-4)


def test_a_demanded_graph_that_cannot_be_is_refused_before_training():
    with pytest.raises(InputError, match=r"graph=true: the device is cpu.* Use device=cuda, or"):
        trained("so", 2, "graph=true")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("graph=false",), "graph=false"),
        (("precision=fp16",), "precision=fp16 scales gradients"),
        (("method=galore",), "SavedGaLore"),
    ],
)
def test_steps_stay_eager_with_the_reason(overrides, reason):
    graph = captured("adamw", 1, *overrides).adaptation.graph
    assert graph.startswith("eager: ")
    assert reason in graph
