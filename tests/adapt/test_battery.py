"""One battery for all methods, on ViTs and ResNets: see battery_rows.py for what each promises."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from so_clip.build import Model
from so_clip.config.compose import compose
from so_clip.config.settings import from_config
from so_clip.errors import InputError
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from so_clip.system.paths import CONF_DIR
from tests.helpers.battery_parts import (
    STEPS,
    TRAINED,
    batches_of,
    logits_of,
    model_of,
    settings_of,
)
from tests.helpers.battery_rows import ROWS


class Trained:
    """A method after its training, and what was there before."""

    def __init__(self, method: str, folder: Path, steps: int = STEPS, *more: str) -> None:
        self.settings = settings_of(method, steps, *more)
        self.model = model_of(self.settings)
        self.before = _values(self.model)
        self.zero_shot_BK = logits_of(self.model)
        folder.mkdir(exist_ok=True)
        batches = batches_of(self.settings, self.model)
        run = Run(self.settings, self.model, RunFolder(folder), batches)
        self.adaptation = run.adapt(Progress(None, 0))
        self.memory = run.peak_memory.result()
        self.logits_BK = logits_of(self.model)


def _values(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.classifier.state_dict().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    @cache
    def of(method: str) -> Trained:
        return Trained(method, tmp_path_factory.mktemp(method))

    return of


def test_every_method_has_a_row() -> None:
    methods = {path.stem for path in (CONF_DIR / "method").glob("*.yaml")} - {"zero_shot"}
    assert methods == set(ROWS)


@pytest.mark.parametrize("method", TRAINED)
def test_the_loss_falls(method, trained):
    losses = trained(method).adaptation.history.losses
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("method", ROWS)
def test_only_what_is_meant_to_change_changes(method, trained):
    done = trained(method)
    after = _values(done.model)
    changed = [
        name
        for name, value in after.items()
        if name not in done.before or not torch.equal(value, done.before[name])
    ]
    meant = re.compile(rf"(^|\.)({ROWS[method].changes})$")
    # State dicts keep to open_clip's names for the projections of attention.
    names = [name.replace("in_proj_", "in_proj.") for name in changed]
    assert [name for name in names if not meant.search(name)] == []
    assert changed or not ROWS[method].trains
    assert not torch.equal(done.logits_BK, done.zero_shot_BK)


@pytest.mark.parametrize("method", ROWS)
def test_the_zero_shot_logits_are_where_it_starts_or_are_left_by_start(method):
    settings = settings_of(method)
    model = model_of(settings)
    plain = model_of(from_config(compose(["method=zero_shot"])))
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=1e-5, atol=1e-4)
    assert model.adapter is not None
    support = FewShotEmbeddings(model.classifier, batches_of(settings, model), model.precision, 1)
    model.adapter.start(model.classifier, support)
    model.classifier.forget_classes()
    same = torch.allclose(logits_of(model), logits_of(plain), rtol=1e-5, atol=1e-4)
    assert same == ROWS[method].zero_shot_start


@pytest.mark.parametrize("method", ROWS)
def test_what_it_became_can_be_saved_and_loaded(method, trained, tmp_path):
    done = trained(method)
    torch.save(done.model.classifier.state_dict(), tmp_path / "adapted.pt")
    other = model_of(done.settings)
    assert other.adapter is not None
    support = FewShotEmbeddings(
        other.classifier, batches_of(done.settings, other), other.precision, 1
    )
    other.adapter.start(other.classifier, support)
    state = torch.load(tmp_path / "adapted.pt", weights_only=True)
    other.classifier.load_state_dict(state)
    other.adapter.resume(other.classifier)
    other.classifier.forget_classes()
    torch.testing.assert_close(logits_of(other), done.logits_BK, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ROWS)
def test_a_seed_is_a_result(method, tmp_path):
    short = 4
    first, again = (Trained(method, tmp_path / str(turn), short) for turn in range(2))
    assert first.adaptation.history.losses == again.adaptation.history.losses
    assert torch.equal(first.logits_BK, again.logits_BK)
    other = Trained(method, tmp_path / "other", short, "seed=2")
    assert not torch.equal(other.logits_BK, first.logits_BK)


@pytest.mark.parametrize("method", TRAINED)
def test_peak_memory_is_recorded(method, trained):
    memory = trained(method).memory
    assert 0 < memory["weights_mib"] < memory["peak_memory_mib"]
    assert memory["activations_mib"] > 0


@pytest.mark.parametrize("method", ROWS)
def test_a_resnet_is_adapted_or_refused_by_name(method, tmp_path):
    settings = settings_of(method, 2)
    if not ROWS[method].resnet:
        with pytest.raises(InputError):
            model_of(settings, "resnet")
        return
    model = model_of(settings, "resnet")
    run = Run(settings, model, RunFolder(tmp_path), batches_of(settings, model))
    done = run.adapt(Progress(None, 0))
    assert all(loss < 100 for loss in done.history.losses)
