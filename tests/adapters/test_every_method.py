"""Adapter files of all methods: in a new copy of the base, the logits are the run's bit for bit."""

from pathlib import Path

import pytest
import torch

from so_clip import adapters
from so_clip.adapters.about import About, Base, LowRank
from so_clip.adapters.before import added_tensors
from so_clip.adapters.file import saved_adapter
from so_clip.adapters.of_run import options_of
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.methods.model import Model
from tests.helpers.battery_parts import NAMES, TrainedMethod, logits_of, model_of, trained
from tests.helpers.battery_rows import ROWS, cases

INTERPOLATED = [
    ("so", "adapter.interpolation=0.5"),
    ("clip_lora", "adapter.interpolation=0.5"),
    ("lora", "adapter.interpolation=0.5"),
    ("relora", "adapter.interpolation=0.5"),
]


def plain_model() -> Model:
    return model_of(from_config(compose(["method=zero_shot"])))


def adapter_of(done: TrainedMethod, path: Path) -> adapters.SavedAdapter:
    """Save the adapter of a trained method, and read it."""
    classifier, method = done.model.classifier, done.model.adapter
    assert method is not None
    assert done.changes is not None
    state = classifier.backbone.model.state_dict()
    about = About(
        base=Base(
            architecture="small",
            weights_sha256=plain_model().classifier.backbone.weights_sha256,
            logit_scale=classifier.backbone.logit_scale,
        ),
        class_names=NAMES,
        templates=classifier.templates,
        method=done.settings.method.name,
        settings=options_of(done.settings),
        class_bound=method.class_bound,
        low_rank=tuple(
            LowRank(**vars(update), shape=tuple(state[update.tensor].shape))
            for update in method.low_rank_updates(classifier)
        ),
    )
    adapters.save(saved_adapter(about, done.changes, added_tensors(done.model)), path)
    return adapters.load(path)


@pytest.mark.parametrize("method", cases(ROWS))
def test_a_saved_adapter_gives_the_logits_of_the_run_and_leaves_no_trace(method, tmp_path):
    check(trained(method), tmp_path)


@pytest.mark.parametrize(("method", "override"), INTERPOLATED)
def test_interpolated_weights_are_saved_as_they_were_tested(method, override, tmp_path):
    check(trained(method, override), tmp_path)


def check(done: TrainedMethod, tmp_path: Path) -> None:
    adapter = adapter_of(done, tmp_path / "adapter.safetensors")
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
