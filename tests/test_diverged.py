"""A run whose loss is no longer finite leaves what a reader needs to see why."""

import json
from pathlib import Path

import pytest

from tests.helpers.command import call


@pytest.mark.slow
def test_a_diverged_run_has_its_provenance(tmp_path: Path) -> None:
    done = call("experiment=demo", "optimizer.lr=1e30", f"results_dir={tmp_path}")
    assert done.code == 1, done.err
    (file,) = tmp_path.glob("*/error.json")
    assert json.loads(file.read_text())["kind"] == "TrainingDiverged"
    provenance = json.loads((file.parent / "provenance.json").read_text())
    assert provenance["backbone_weights_sha256"]
    assert provenance["versions"]["torch"]
    assert provenance["hardware"]["device"]
    assert (file.parent / "history.csv").is_file()
    assert not (file.parent / "metrics.json").exists()
