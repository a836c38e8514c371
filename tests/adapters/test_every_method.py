"""Adapter files of all methods: in a new copy of the base, the logits are the run's bit for bit."""

from pathlib import Path

import pytest
import torch

from so_clip import adapters
from tests.helpers.battery_parts import TrainedMethod, logits_of, trained
from tests.helpers.battery_rows import ROWS, cases
from tests.helpers.saved_adapters import plain_model, save_trained

INTERPOLATED = ("so", "clip_lora", "lora", "relora")


@pytest.mark.parametrize("method", cases(ROWS, ("so", "clip_lora", "cocoop", "two_stage")))
def test_a_saved_adapter_gives_the_logits_of_the_run_and_leaves_no_trace(method, tmp_path):
    check(trained(method), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", INTERPOLATED)
def test_interpolated_weights_are_saved_as_they_were_tested(method, tmp_path):
    check(trained(method, "adapter.interpolation=0.5"), tmp_path)


def check(done: TrainedMethod, tmp_path: Path) -> None:
    adapter = save_trained(done, tmp_path / "adapter.safetensors")
    model = plain_model()
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    zero_shot_BK = logits_of(model)
    adapters.apply(model.classifier, adapter)
    assert torch.equal(logits_of(model), done.logits_BK)
    assert not any(value.requires_grad for value in model.classifier.parameters())
    adapters.remove(model.classifier)
    after = model.classifier.state_dict()
    assert {*after} == {*before}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits_of(model), zero_shot_BK)
