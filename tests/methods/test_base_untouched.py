"""Adapters that train no weight of the model keep all its weights bit for bit, in bf16."""

import re
from functools import partial
from itertools import cycle

import pytest
import torch
from torch import Tensor

from so_clip.build import assemble_model, build_optimizer
from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.prompts import templated
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.train import train_step
from tests.helpers.battery_parts import NAMES, TRAINED, batches_of, settings_of
from tests.helpers.battery_rows import ROWS, cases
from tests.helpers.small_models import small_backbone

STEPS = 40


def backbone() -> Backbone:
    """Return a tiny model, so that a step takes milliseconds."""
    made = small_backbone(layers=1, width=32, head_width=16, image_size=16)
    explicit_attention(made.model)
    return made


def base_of(made: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}


# State dicts have open_clip's names for the projections of attention.
BASE_NAMES = [name.replace("in_proj_", "in_proj.") for name in base_of(backbone())]


def trains_no_base_weight(method: str) -> bool:
    allowed = re.compile(rf"(^|\.)({ROWS[method].changes})$")
    return not any(map(allowed.search, BASE_NAMES))


ADAPTERS = [method for method in TRAINED if trains_no_base_weight(method)]


def test_prompts_heads_and_low_rank_updates_train_no_base_weight() -> None:
    expected = {"coop", "cocoop", "taskres", "clap", "linear_probe", "clip_lora", "lora", "dora"}
    assert expected | {"adalora", "oft", "ia3", "fourierft", "shira"} <= set(ADAPTERS)
    assert not {"so", "adamw", "bitfit", "relora", "two_stage"} & set(ADAPTERS)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", cases(ADAPTERS))
def test_base_weights_stay_equal_bit_for_bit(method: str) -> None:
    settings, made = settings_of(method, STEPS, "precision=bf16"), backbone()
    before = base_of(made)
    model = assemble_model(settings, made, templated(NAMES, ["a photo of a {}."]))
    assert model.adapter is not None
    adapter, classifier = model.adapter, model.classifier
    assert model.precision.name == "bf16"
    batches = batches_of(settings, model)
    adapter.start(classifier, FewShotEmbeddings(classifier, batches, model.precision, 1))
    first = {name: value.detach().clone() for name, value in model.parameters.items()}
    optimizer = build_optimizer(settings.method.optimizer, model)
    images_BCHW, labels_B = next(iter(batches.epoch()))
    pairs = [(images_BCHW[n : n + 2], labels_B[n : n + 2]) for n in range(0, len(labels_B), 2)]
    for step, pair in zip(range(1, STEPS + 1), cycle(pairs), strict=False):
        train_step(
            classifier,
            *pair,
            optimizer=optimizer,
            precision=model.precision,
            penalty=partial(adapter.penalty, classifier),
        )
        for restarted in adapter.after_step(classifier, step):
            optimizer.state.pop(restarted, None)
    after = classifier.backbone.model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []
    assert any(not torch.equal(model.parameters[name], value) for name, value in first.items())
    assert all(value.isfinite().all() for value in model.parameters.values())
