"""The demo reaches the scores that README.md, docs/index.md and docs/start/demo.md print."""

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from so_clip.system.paths import CONF_DIR
from tests.helpers.command import ROOT, call

# Rounding differs between processors, and 200 steps amplify it.
POINTS = 3
SEEDS = (1, 2, 3)


def test_the_demo_has_settings_for_every_kind_of_so():
    """conf/experiment/by_optimizer/ needs a file for each optimizer of SO's family."""
    kinds = {path.stem for path in (CONF_DIR / "optimizer").glob("so*.yaml")}
    known = {path.stem for path in (CONF_DIR / "experiment" / "by_optimizer").glob("demo_*.yaml")}
    assert {f"demo_{kind}" for kind in kinds} == known


def printed(page: str, pattern: str) -> float:
    """Return the number that a page prints after `pattern`."""
    match = re.search(rf"{pattern}\s+([\d.]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert match, pattern
    return float(match[1])


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The metrics of the demo by seed, from one sweep in this process."""
    folder = tmp_path_factory.mktemp("demo")
    seeds = ",".join(map(str, SEEDS))
    outcome = call("-m", "experiment=demo", f"seed={seeds}", f"results_dir={folder}")
    assert outcome.code == 0, outcome.err
    read = [json.loads(Path(file).read_text()) for file in folder.glob("*/metrics.json")]
    return {one["seed"]: one for one in read}


@pytest.mark.slow
def test_four_shots_gain_fifteen_points_over_zero_shot(metrics):
    assert set(metrics) == set(SEEDS)
    for one in metrics.values():
        assert one["zero_shot_accuracy_percent"] >= 60
        assert one["accuracy_percent"] >= one["zero_shot_accuracy_percent"] + 15


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/start/demo.md"])
def test_the_demo_reaches_the_printed_scores(metrics, page):
    zero_shot, adapted = (printed(page, f"{name} accuracy") for name in ("zero-shot", "adapted"))
    assert metrics[1]["zero_shot_accuracy_percent"] == pytest.approx(zero_shot, abs=0.5)
    assert metrics[1]["accuracy_percent"] == pytest.approx(adapted, abs=POINTS)
    assert metrics[1]["peak_memory_mib"] == pytest.approx(printed(page, "peak memory"), rel=0.05)


@pytest.mark.slow
def test_the_demo_reaches_the_printed_mean_over_seeds(metrics):
    average = mean(one["accuracy_percent"] for one in metrics.values())
    assert average == pytest.approx(printed("docs/start/demo.md", r"\| SO \|"), abs=POINTS)
