"""Jobs with finished runs are skipped before a launcher starts; all others are launched."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from so_clip.fingerprint import KnownRuns
from so_clip.sweep import finished
from so_clip.sweep.finished import Composer, _is_local
from so_clip.sweep.launch import hydra_main
from tests.helpers.command import Outcome, call
from tests.helpers.places import write_place

COMMON = ("method=zero_shot", "evaluation.workers=0")
OVERRIDES = [
    ["method=so", "seed=1"],
    ["method=so", "seed=2", "optimizer.density_ratio=5e-4"],
    ["seed=3", "method=clip_lora", "+adapter.r=4"],
    ["method=so", "~evaluation.cache_dir"],
    ["method=so", "++optimizer.T=3", "augment.scale=[0.5,1.0]"],
    ["experiment=demo", "schedule.max_steps=3", "dataset=digits", "method=so"],
    ["experiment=paper_table", "optimizer=adamw", "method=so", "shots=4"],
    ["dataset={name:digits,split_file:null}", "dataset.name=dtd"],
    ["hydra.job.chdir=false", "template='a {}, drawn'", "results_dir=${data_root}"],
]


@pytest.fixture
def unknown_runs(monkeypatch):
    """Forget the lists and weights that runs of other tests left in this process."""

    def forget() -> None:
        known = KnownRuns()
        monkeypatch.setattr(finished, "KNOWN_RUNS", known)
        monkeypatch.setattr("so_clip.sweep.job.KNOWN_RUNS", known)

    forget()
    return forget


def sweep(folder: Path, *arguments: str) -> Outcome:
    done = call("-m", *COMMON, f"results_dir={folder}", *arguments)
    assert done.code == 0, done.err
    return done


@pytest.mark.slow
def test_shared_compositions_equal_those_of_hydra(tmp_path, monkeypatch):
    """Every kind of override gives what Hydra's launchers compose."""
    seen = []

    def compare(config, loader, jobs):
        compose = Composer(config, loader)
        for overrides in OVERRIDES:
            whole = loader.load_sweep_config(config, list(overrides))
            whole = OmegaConf.to_container(whole, resolve=False)
            del whole["hydra"]
            assert OmegaConf.to_container(compose(overrides), resolve=False) == whole
            seen.append(overrides)
        assert compose._base.cache_info().hits == 3  # all with method=so alone
        return jobs, len(jobs)

    monkeypatch.setattr(finished, "put_finished_first", compare)
    monkeypatch.setattr("sys.argv", ["so_clip", "-m", "seed=1,2", f"results_dir={tmp_path}"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):  # no job started
        hydra_main(lambda config: None, lambda folders: None)
    assert seen == OVERRIDES


def test_unknown_options_are_refused_as_by_hydra(tmp_path):
    done = call("-m", "seed=1,2", "schedule.max_step=3", f"results_dir={tmp_path}")
    assert done.code == 2
    assert done.messages[0].startswith("so_clip: schedule.max_step: there is no such option.")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_finished_jobs_come_first_and_the_others_keep_their_order(tmp_path, unknown_runs):
    templates = [f"'a {{}}, {word}'" for word in ("one", "two", "three", "four")]
    sweep(tmp_path, f"template={templates[1]},{templates[3]}")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/metrics.json")}
    unknown_runs()
    done = sweep(tmp_path, f"template={','.join(templates)}")
    assert done.out.startswith("2 of 4 runs finished before: skipped. force=true repeats them.\n")
    lines = [line for line in done.out.splitlines() if line.endswith(" ...")]
    assert lines == [
        f"[3 of 4] template={templates[0]} ...",
        f"[4 of 4] template={templates[2]} ...",
    ]
    assert done.out.rstrip().endswith("sweep of 4 runs: 2 done, 2 skipped (finished before)")
    assert (
        before.items() <= {f: f.stat().st_mtime_ns for f in tmp_path.glob("*/metrics.json")}.items()
    )
    plans = [json.loads(file.read_text()) for file in tmp_path.glob(".sweeps/*/sweep.json")]
    (plan,) = [plan for plan in plans if len(plan["jobs"]) == 4]
    order = [job[-1].removeprefix("template=") for job in plan["jobs"]]
    assert order == [templates[number] for number in (1, 3, 0, 2)]
    assert plan["finished"] == 2


@pytest.mark.slow
def test_a_changed_run_is_launched(tmp_path, unknown_runs):
    """What decides on a run's result is part of its fingerprint; force=true repeats anyway."""
    split, images = tmp_path / "split.json", tmp_path / "data" / "dtd" / "images"
    names = ("train", "val", "test")
    lists = {
        name: [[f"{label}/{name}.png", number, label] for number, label in enumerate("ab")]
        for name in names
    }
    for path in (f"{label}/{name}.png" for name in names for label in "ab"):
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (50, 90, 200)).save(images / path)
    split.write_text(json.dumps(lists))
    runs = tmp_path / "runs"
    arguments = ("dataset=dtd", f"data_root={tmp_path / 'data'}", f"dataset.split_file={split}")

    def again(*more: str) -> str:
        unknown_runs()
        (counts,) = re.findall(
            "^sweep of 1 run: 1 ([a-z]+)", sweep(runs, *arguments, *more).out, re.M
        )
        return counts

    assert [again(), again(), again("force=true")] == ["done", "skipped", "done"]
    lists["test"].reverse()
    split.write_text(json.dumps(lists))
    assert [again(), again()] == ["done", "skipped"]
    warm = "backbone.logit_scale=50"
    assert [again(warm), again(warm)] == ["done", "skipped"]
    for file in runs.glob("*/metrics.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"accuracy_percent": None}))
    assert again() == "done"
    for file in runs.glob("*/config.yaml"):  # someone removed a part of the runs
        file.unlink()
    assert again() == "done"


@pytest.mark.parametrize(
    ("job", "launcher", "is_local"),
    [
        ({}, "BasicLauncher", True),
        ({}, "JoblibLauncher", True),
        ({}, "SlurmLauncher", False),
        ({}, "RayLauncher", False),
        ({"env_set": {"X": "1"}}, "BasicLauncher", False),
        ({"env_copy": ["X"]}, "BasicLauncher", False),
        ({"chdir": True}, "BasicLauncher", False),
    ],
)
def test_only_jobs_in_the_environment_of_the_sweep_are_matched(job, launcher, is_local):
    job = {"env_set": {}, "env_copy": [], "chdir": False} | job
    hydra = {"job": job, "launcher": {"_target_": f"hydra_plugins.x.{launcher}"}}
    assert _is_local(OmegaConf.create({"hydra": hydra})) is is_local


@pytest.mark.slow
def test_a_sweep_keeps_the_factor_of_a_base_that_a_finished_run_had(tmp_path, unknown_runs):
    """The finder loads the weights, and the next job does not load them again."""
    write_place(tmp_path / "base")
    options = (
        f"backbone.architecture=local-dir:{tmp_path / 'base'}",
        *("method=so", "shots=1", "schedule.max_steps=1", "optimizer.T=1"),
    )
    results = tmp_path / "results"
    sweep(results, *options, "seed=1")
    unknown_runs()
    sweep(results, *options, "seed=1,2")
    scales = [
        yaml.safe_load((folder / "config.yaml").read_text())["backbone"]["logit_scale"]
        for folder in results.glob("digits-*")
    ]
    assert scales == [pytest.approx(1 / 0.07)] * 2
