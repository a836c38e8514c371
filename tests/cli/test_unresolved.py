"""Interpolations without a value, sweeps without runs, and paths that no file system allows."""

import pytest

from tests.helpers.command import call

FAR_TOO_LONG = "x" * 300
CASES = [
    ("seed='${seed}'", ["cannot be resolved", "Recursive", "${NAME}"]),
    ("results_dir='${nope}'", ["cannot be resolved", "'nope'", "${NAME}"]),
    ("-m results_dir='${nope}'", ["cannot be resolved (results_dir)", "'nope'"]),
    ("-m hydra.sweep.dir='${nope}' seed=1,2", ["(hydra.sweep.dir)", "'nope'"]),
    ("-m seed='${seed}'", ["cannot be resolved", "Recursive"]),
    ("-m seed=range(0)", ["seed: has no values", "at least one"]),
    ("-m method=glob(z*q)", ["method: has no values", "at least one"]),
    (f"status {FAR_TOO_LONG}", ["RESULTS_DIR=xxx", "too long", "255"]),
    (f"table {FAR_TOO_LONG}", ["RESULTS_DIR=xxx", "too long", "255"]),
    (f"doctor data_root={FAR_TOO_LONG}", ["data_root=xxx", "too long", "255"]),
    (f"prepare dataset=dtd data_root=new --offline-from {FAR_TOO_LONG}", ["--offline-from=xxx"]),
    ("doctor data_root=. cards_dir=none", ["cards_dir=none", "no card"]),
]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(("line", "parts"), CASES, ids=[line[:40] for line, _ in CASES])
def test_one_message_names_what_has_no_value(line, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call(*line.split())
    assert outcome.code == 2, outcome
    assert len(outcome.messages) == 1, outcome.messages
    assert all(part in outcome.messages[0] for part in parts), outcome.messages
    assert not [*tmp_path.iterdir()]


def test_a_sweep_goes_on_after_a_job_with_an_interpolation_without_a_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call("-m", "seed='${nope}',-1")
    assert outcome.code == 2
    assert "sweep of 2 runs: 2 failed" in outcome.out
    assert "seed='\\${nope}'" in outcome.out
    assert not [*tmp_path.iterdir()]
