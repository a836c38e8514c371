"""The forecast of every family of backbones against a real run, and repeated blocks in timm's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from so_clip.clip.backbone import Backbone
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.cards.card import load_card
from so_clip.forecast import predict, repeats
from so_clip.forecast.steps import forget_values
from tests.helpers.command import call
from tests.helpers.small_families import FAMILIES, small_backbone

# At the peak, a batch's first gradients may exist or not, so they count with activations.
MEMORY = (("weights_mib",), ("optimizer_state_mib",), ("gradients_mib", "activations_mib"))
TOLERANCE = 0.1  # relative to the whole peak
OPTIONS = [
    *("method=so", "backbone=tiny", "backbone.pretrained=null", "shots=2", "optimizer.T=3"),
    *("schedule.max_steps=4", "schedule.batch_size=16", "device=cpu", "evaluation.batch_size=64"),
    *("optimizer.density_ratio=0.004", "optimizer.sampled_gradients=true"),
]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lets runs and forecasts load a small backbone of a family."""

    def use(family: str) -> None:
        def load(choice: Any, seed: int, weightless: bool = False) -> Backbone:
            with unset_fake_temporarily():
                backbone = small_backbone(family)
            if weightless:
                forget_values(backbone, _active_mode())
            return backbone

        monkeypatch.setattr("so_clip.build.load", load)
        monkeypatch.setattr(predict, "load", load)

    return use


def _active_mode() -> FakeTensorMode:
    from torch._guards import active_fake_mode

    mode = active_fake_mode()
    assert mode is not None
    return mode


def _forecast(*options: str) -> dict[str, Any]:
    settings = from_config(compose([*OPTIONS, *options]))
    return predict.forecast(settings, load_card("digits"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_is_that_of_a_real_run(family: str, use: Any, tmp_path: Path) -> None:
    use(family)
    real = call(f"results_dir={tmp_path}", "evaluation.workers=0", *OPTIONS)
    assert real.code == 0, real.err
    (file,) = tmp_path.glob("*/metrics.json")
    metrics, expected = json.loads(file.read_text()), _forecast()
    peak = metrics["peak_memory_mib"]
    assert expected["peak_memory_mib"] == pytest.approx(peak, rel=TOLERANCE)
    for parts in MEMORY:
        found, real_mib = (sum(item[part] for part in parts) for item in (expected, metrics))
        assert found == pytest.approx(real_mib, rel=TOLERANCE, abs=0.01 * peak), parts
    assert expected["trainable_parameters"] == metrics["trainable_parameters"]
    assert metrics["trained_matrices"] >= metrics["sampled_matrices"] > 0


DEEP = {
    "siglip": ["memory=fast", "memory=balanced"],
    "eva02_b": ["memory=balanced", "memory=small"],
    "pe_core": ["memory=balanced"],
    "convnext": ["memory=balanced"],
    "resnet": ["memory=small"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "option"), [(name, option) for name, options in DEEP.items() for option in options]
)
def test_repeated_blocks_count_like_blocks_that_run(
    family: str, option: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = FAMILIES[family]
    if "depth" in deep.trunk:
        deep = replace(deep, trunk=deep.trunk | {"depth": 7})
    elif "depths" in deep.trunk:
        deep = replace(deep, trunk=deep.trunk | {"depths": (1, 1, 7, 1)})
    else:
        deep = replace(deep, vision=deep.vision | {"layers": [1, 1, 8, 1]})
    monkeypatch.setitem(FAMILIES, "deep", deep)
    use("deep")
    kept: list[int] = []
    shorten = repeats.shorten

    def count(blocks: Any, kept_blocks: Any) -> None:
        kept.append(len(blocks) - len(kept_blocks))
        shorten(blocks, kept_blocks)

    monkeypatch.setattr(repeats, "shorten", count)
    repeated = _forecast(option)
    assert max(kept) >= 3
    monkeypatch.setattr(repeats, "_FEWEST", 1000)  # so all blocks run
    assert repeated == _forecast(option)
