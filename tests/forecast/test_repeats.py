"""Blocks that a forecast repeats count like blocks that run."""

from typing import Any

import pytest

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.cards.card import load_card
from so_clip.forecast import repeats
from so_clip.forecast.predict import forecast

CASES = [
    "method=coop",
    "method=adamw precision=bf16",
    "method=clip_lora",
    "method=dora",
    "method=last_blocks adapter.position=last-5",
    "method=so memory=small",
    # Its text tower has more blocks than the embedded one's. The budget gives several chunks.
    "method=so backbone=vit_b32 backbone.pretrained=null text_budget_mib=4",
]


def forecast_of(case: str) -> dict[str, Any]:
    settings = from_config(compose([*case.split(), "device=cpu", "schedule.max_steps=3"]))
    return forecast(settings, load_card("digits"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_repeated_blocks_count_like_blocks_that_run(case, monkeypatch):
    repeated = forecast_of(case)
    monkeypatch.setattr(repeats, "_FEWEST", 1000)  # so all blocks run
    assert repeated == forecast_of(case)


def test_a_forecast_runs_four_of_a_towers_equal_blocks(monkeypatch):
    kept: list[int] = []
    shorten = repeats.shorten

    def count(blocks, kept_blocks):
        kept.append(len(kept_blocks))
        shorten(blocks, kept_blocks)

    monkeypatch.setattr(repeats, "shorten", count)
    forecast_of("method=zero_shot")
    assert kept == [4, 4]  # the towers have 6 and 4 blocks
