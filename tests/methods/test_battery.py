"""The shared battery: every method on small ViTs and ResNets; battery_rows.py has one row each."""

import re
from functools import cache

import pytest
import torch
from torch import Tensor

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.system.paths import CONF_DIR
from tests.helpers.battery_parts import (
    STEPS,
    TRAINED,
    TrainedMethod,
    batches_of,
    logits_of,
    model_of,
    resumed,
    settings_of,
    state_of,
    trained,
)
from tests.helpers.battery_rows import FEW, ROWS, cases


def test_every_method_has_a_row() -> None:
    methods = {path.stem for path in (CONF_DIR / "method").glob("*.yaml")}
    # `head` is for sentences: tests/sentences/test_run.py has it.
    assert methods - {"zero_shot", "head"} == set(ROWS)


@pytest.mark.parametrize("method", cases(TRAINED))
def test_the_loss_falls(method):
    losses = trained(method).adaptation.history.losses
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("method", cases(ROWS))
def test_only_the_named_tensors_change(method):
    done = trained(method)
    after = state_of(done.model)
    changed = [
        name
        for name, value in after.items()
        if name not in done.before or not torch.equal(value, done.before[name])
    ]
    allowed = re.compile(rf"(^|\.)({ROWS[method].changes})$")
    # State dicts have open_clip's names for the projections of attention.
    names = [name.replace("in_proj_", "in_proj.") for name in changed]
    assert [name for name in names if not allowed.search(name)] == []
    assert changed or not ROWS[method].trains
    assert not torch.equal(done.logits_BK, done.zero_shot_BK)


@cache
def zero_shot_logits() -> Tensor:
    return logits_of(model_of(from_config(compose(["method=zero_shot"]))))


@pytest.mark.parametrize("method", cases(ROWS))
def test_the_first_logits_are_zero_shot_as_its_row_says(method):
    settings = settings_of(method)
    model = model_of(settings)
    plain_BK = zero_shot_logits()
    torch.testing.assert_close(logits_of(model), plain_BK, rtol=1e-5, atol=1e-4)
    assert model.adapter is not None
    few_shots = FewShotEmbeddings(model.classifier, batches_of(settings, model), model.precision, 1)
    model.adapter.start(model.classifier, few_shots)
    model.classifier.forget_classes()
    same = torch.allclose(logits_of(model), plain_BK, rtol=1e-5, atol=1e-4)
    assert same == ROWS[method].zero_shot_start


@pytest.mark.parametrize("method", cases(ROWS))
def test_the_adapted_model_can_be_saved_and_loaded(method, tmp_path):
    done = trained(method)
    torch.save(done.model.classifier.state_dict(), tmp_path / "adapted.pt")
    state = torch.load(tmp_path / "adapted.pt", weights_only=True)
    other = resumed(done.settings, state)
    assert torch.equal(logits_of(other), done.logits_BK)


@pytest.mark.parametrize("method", cases(ROWS, FEW))
def test_results_depend_only_on_the_seed(method):
    first, again = (TrainedMethod(method, "small_clip", 3, ()) for _ in range(2))
    assert first.adaptation.history.losses == again.adaptation.history.losses
    assert torch.equal(first.logits_BK, again.logits_BK)
    other = TrainedMethod(method, "small_clip", 3, ("seed=2",))
    assert torch.equal(other.logits_BK, first.logits_BK) != ROWS[method].seeded


@pytest.mark.parametrize("method", cases(TRAINED))
def test_peak_memory_is_recorded(method):
    memory = trained(method).memory
    assert 0 < memory["weights_mib"] < memory["peak_memory_mib"]
    assert memory["activations_mib"] > 0


@pytest.mark.parametrize("method", cases(ROWS, FEW))
def test_a_resnet_is_adapted_or_refused(method):
    if not ROWS[method].resnet:
        with pytest.raises(InputError):
            model_of(settings_of(method, 2), "small_resnet")
        return
    losses = trained(method, family="small_resnet", steps=2).adaptation.history.losses
    assert all(loss < 100 for loss in losses)
