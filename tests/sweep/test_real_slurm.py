"""Sweeps on a real Slurm, of one node on this machine: finished, requeued and warned jobs."""

from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.helpers import real_slurm
from tests.helpers.command import ended, started, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(real_slurm.missing() is not None, reason=str(real_slurm.missing())),
]

LAUNCHER = ("-m", "hydra/launcher=slurm", f"hydra.launcher.partition={real_slurm.PARTITION}")
RUN = (
    *("experiment=demo", "device=cpu", "threads=1", "evaluation.workers=0"),
    *("schedule.stop_loss=0", "schedule.max_steps=60"),
)
# What a run has learned and predicted.
RESULTS = ("history.csv", "predictions.csv", "adapter.safetensors")


def _contents(results_dir: Path) -> dict[str, dict[str, bytes]]:
    """Return the results of each run, by its folder's name."""
    return {
        folder.name: {name: (folder / name).read_bytes() for name in RESULTS}
        for folder in results_dir.glob("digits-*")
    }


def _log(results_dir: Path, number: int) -> str:
    """Return what the processes of one job of a sweep printed, one after the other."""
    (file,) = results_dir.glob(f".sweeps/*/.submitit/*_{number}/*.out")
    return file.read_text()


def _sweep(slurm: real_slurm.Slurm, *words: str) -> AbstractContextManager[Popen[str]]:
    return started(*LAUNCHER, *RUN, *words, **slurm.variables)


def _training(results_dir: Path, seed: int) -> bool:
    """Return whether a run has a checkpoint, and asserts that it has not finished."""
    finished = [*results_dir.glob(f"*-seed{seed}-*/metrics.json")]
    assert not finished, "the run was faster than this test"
    return bool([*results_dir.glob(f"*-seed{seed}-*/checkpoint.pt")])


def test_requeued_and_warned_jobs_end_as_undisturbed_ones(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    with real_slurm.cluster() as slurm:
        words = ("method=so,clip_lora", "seed=1,2", f"results_dir={undisturbed}")
        with _sweep(slurm, *words) as process:
            done = ended(process)
        assert done.code == 0, (done, slurm.logs())
        assert "sweep of 4 runs: 4 done" in done.out
        words = ("seed=1,2", "checkpoint_seconds=0.05", f"results_dir={disturbed}")
        with _sweep(slurm, *words) as process:
            until(lambda: _training(disturbed, seed=1), process)
            first, second = slurm.jobs()
            slurm.call("scontrol", "requeue", first)
            until(lambda: _training(disturbed, seed=2), process)
            slurm.call("scancel", "--signal=USR2", second)
            done = ended(process)
        assert done.code == 0, (done, slurm.logs())
        assert "sweep of 2 runs: 2 done" in done.out
        assert [slurm.restarts(job) for job in (first, second)] == [1, 1]
    for number in (0, 1):
        log, name = _log(disturbed, number), f"[{number + 1} of 2] seed={number + 1}"
        assert log.count(f"{name} ...") == 2, log  # it started twice
        assert log.count(f"{name}: ") == 1, log  # and finished once
    expected, found = _contents(undisturbed), _contents(disturbed)
    assert len(expected) == 4
    assert len(found) == 2
    assert found == {name: expected[name] for name in found}
