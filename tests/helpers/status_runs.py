"""Writes run folders and sweeps, and starts processes that hold run folders."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from so_clip.results.job_files import Job, read_plan
from so_clip.status.screen import View
from tests.helpers.command import Outcome, call, environment

METRICS: dict[str, Any] = {
    "dataset": "digits",
    "backbone": "tiny",
    "method": "so",
    "method_title": "SO",
    "shots": 4,
    "seed": 1,
    "accuracy_percent": 81.11,
    "peak_memory_mib": 44.1,
    "steps": 200,
    "final_loss": 0.16,
    "settings": {},
}
ERROR: dict[str, Any] = {
    "kind": "TrainingDiverged",
    "message": "the loss became nan at step 50.\nLower optimizer.lr.",
    "overrides": ["dataset=dtd", "template='a sketch of a {}'", "transfer=[a,b]"],
}


def progress(seconds_ago: float = 0, **changes: Any) -> dict[str, Any]:
    updated_at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return {
        "step": 120,
        "max_steps": 2000,
        "loss": 0.25,
        "updated_at": updated_at.isoformat(timespec="seconds"),
        "seconds_left": 4000.0,
        "stage": "train",
    } | changes


def write_run(root: Path, name: str, **files: Any) -> Path:
    """Write a run folder with config.yaml and with JSON files, given by their names."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}\n")
    for stem, values in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(values))
    return folder


def write_sweep(
    root: Path, started: str, command: Sequence[str], jobs: Sequence[Sequence[str]]
) -> Path:
    """Write the folder of a sweep that has started."""
    folder = root / ".sweeps" / started
    (folder / "jobs").mkdir(parents=True)
    values = {"command": ["/x/so_clip/__main__.py", *command], "jobs": list(map(list, jobs))}
    (folder / "sweep.json").write_text(json.dumps(values))
    return folder


def write_job(sweep: Path, number: int, state: str, **values: Any) -> None:
    """Write a job's file; its overrides are those of the plan unless given."""
    plan = read_plan(sweep)
    planned = plan.jobs[number] if plan is not None and number < len(plan.jobs) else []
    job = Job(planned, state, pid=os.getpid(), host=platform.node())
    (sweep / "jobs" / f"{number}.json").write_text(json.dumps(asdict(job) | values))


def states(view: View) -> dict[str, str]:
    """Return the state of each run by its name, up to the first dash."""
    return {run.name.partition("-")[0]: run.state for run in view.runs}


def status(*arguments: object) -> Outcome:
    return call("status", *arguments)


_HOLD_FOLDER = """
import json
import sys
from pathlib import Path
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder

folder = RunFolder(Path(sys.argv[1]))
metrics, *overrides = sys.argv[3:]
with folder.claimed(overrides):
    if sys.argv[2] == "started":
        folder.start({}, None)
        progress = Progress(folder.path, 200, folder.overrides)
        progress.train()
        progress.after_step(50, 0.5)
    print("running", flush=True)
    sys.stdin.read()
    if sys.argv[2] == "started":
        folder.finish(json.loads(metrics), "")
"""


@contextmanager
def running_process(
    folder: Path, stage: str = "started", *overrides: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds a run's folder; it finishes the run when its stdin is closed."""
    metrics = METRICS | {"accuracy_percent": 75.0}
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD_FOLDER, str(folder), stage, json.dumps(metrics), *overrides],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
    finally:
        process.kill()
        process.communicate()
