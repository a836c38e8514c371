"""Concurrent runs share the cores and the GPUs."""

import os
from contextlib import ExitStack

import pytest
import torch

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.fingerprint import settings_sha256
from so_clip.runtime.device import one_gpu
from so_clip.system.machine import (
    concurrent_runs,
    core_share,
    lease_gpu,
    ray_resources,
    shares_gpus,
    usable_cores,
)

CORES = len(os.sched_getaffinity(0))
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@pytest.mark.parametrize(
    ("launcher", "jobs", "expected"),
    [
        ({"_target_": BASIC}, 9, 1),
        ({"_target_": JOBLIB, "n_jobs": 3}, 9, 3),
        ({"_target_": JOBLIB, "n_jobs": 3}, 2, 2),
        ({"_target_": JOBLIB, "n_jobs": 3}, 0, 3),
        ({"_target_": JOBLIB, "n_jobs": None}, 9, 1),
        ({"_target_": JOBLIB, "n_jobs": -1}, 999, CORES),
        ({"_target_": JOBLIB, "n_jobs": -CORES - 5}, 999, 1),
        ({"_target_": f"{SUBMITIT}.LocalLauncher"}, 9, 9),
        ({"_target_": f"{SUBMITIT}.SlurmLauncher"}, 9, 1),
        ({"_target_": RAY}, 999, CORES),
        ({"_target_": RAY, "ray": {"remote": {"num_cpus": CORES}}}, 999, 1),
    ],
)
def test_the_number_of_concurrent_runs_depends_on_the_launcher(launcher, jobs, expected):
    assert concurrent_runs(launcher, jobs) == expected


@pytest.mark.parametrize(
    ("ray", "gpus", "expected"),
    [
        ({"init": {"address": None}, "remote": {}}, 0, {}),
        ({"init": {"address": None}, "remote": {}}, 1, {"num_gpus": 1, "num_cpus": CORES}),
        ({"init": {"address": None}, "remote": {}}, 9999, {"num_gpus": 1, "num_cpus": 1}),
        (
            {"remote": {"num_cpus": 3, "max_calls": 1}},
            2,
            {"num_gpus": 1, "num_cpus": 3, "max_calls": 1},
        ),
        ({"remote": {"num_gpus": 0.5}}, 2, {}),
        ({"init": {"address": "auto"}, "remote": {}}, 2, {}),
    ],
)
def test_ray_starts_one_run_for_each_gpu(ray, gpus, expected):
    assert ray_resources({"_target_": RAY, "ray": ray}, gpus) == expected
    assert ray_resources({"_target_": JOBLIB, "ray": ray}, gpus) == {}


def test_concurrent_runs_share_the_cores():
    assert usable_cores() == core_share(1) == CORES
    for runs in (1, 2, CORES, CORES + 1, 999):
        assert core_share(runs) >= 1
        assert core_share(runs) * runs <= max(CORES, runs)


def test_auto_threads_share_the_cores_and_explicit_values_win():
    config = compose([])
    alone, crowded = from_config(config), from_config(config, CORES)
    assert (alone.placement.threads, alone.evaluation.workers) == (None, CORES)
    assert (crowded.placement.threads, crowded.evaluation.workers) == (1, 1)
    given = from_config(compose(["threads=3", "evaluation.workers=5"]), CORES)
    assert (given.placement.threads, given.evaluation.workers) == (3, 5)
    assert settings_sha256(alone) == settings_sha256(crowded) == settings_sha256(given)


@pytest.mark.parametrize(
    ("device", "runs", "expected"),
    [
        *((device, 2, True) for device in ("auto", "cuda")),
        *((device, 2, False) for device in ("cpu", "cuda:0", "cuda:1")),
        *((device, 1, False) for device in ("auto", "cuda", "cpu")),
    ],
)
def test_cuda_without_a_number_means_any_gpu(device, runs, expected):
    assert shares_gpus(device, runs) == expected


def test_each_job_takes_the_next_gpu(tmp_path):
    taken = []
    for number in range(7):
        with lease_gpu(number, 3, tmp_path) as index:
            taken.append(index)
    assert taken == [0, 1, 2, 0, 1, 2, 0]


def test_a_busy_gpu_is_skipped_unless_all_are_busy(tmp_path):
    with ExitStack() as stack:
        taken = [stack.enter_context(lease_gpu(0, 3, tmp_path)) for _ in range(5)]
        assert taken == [0, 1, 2, 0, 0]
        assert stack.enter_context(lease_gpu(7, 3, tmp_path)) == 1
    with lease_gpu(2, 3, tmp_path) as index:
        assert index == 2


def test_a_gpu_is_known_by_its_own_number_wherever_it_is_visible(tmp_path, monkeypatch):
    with ExitStack() as stack:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
        assert stack.enter_context(lease_gpu(0, 2, tmp_path)) == 0
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
        assert stack.enter_context(lease_gpu(1, 2, tmp_path)) == 0


def test_a_job_computes_on_its_gpu_where_there_are_any():
    count = torch.cuda.device_count()
    for number in (None, 0, 1, 5):
        with one_gpu(number):
            if count:
                expected = 0 if number is None else number % count
                assert torch.empty(1, device="cuda").device.index == expected
            assert torch.empty(1).device.type == "cpu"
