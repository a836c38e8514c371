"""Compare twelve fixed-seed runs of the working tree with those of another revision, bit for bit.

    python scripts/same_results.py REVISION          # for example HEAD~1, or a tag
    python scripts/same_results.py --record FILE     # only write the results of the working tree
    python scripts/same_results.py --check FILE      # compare the working tree with such a file

Run it before and after a change that must not change any result. A run here is a short training on
the digits with the embedded CLIP. Losses, learning rates, predictions and accuracies are compared
as text, so every last bit counts. One run is killed in the middle of its training and resumed. The
exit code is 0 if all results are equal and 1 if any result differs.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("dataset=digits", "threads=1", "evaluation.workers=0", "device=cpu", "shots=2")
RUNS = {
    "so": ("experiment=demo", "schedule.max_steps=25"),
    "so_official": ("method=so_official", "schedule.max_steps=25"),
    "adamw": ("method=adamw", "schedule.max_steps=12"),
    "clip_lora": ("method=clip_lora", "schedule.max_steps=12"),
    "lora": ("method=lora", "schedule.max_steps=12"),
    "coop": ("method=coop", "schedule.max_steps=12"),
    "tip_adapter_f": ("method=tip_adapter_f", "schedule.max_steps=12"),
    "two_stage": ("method=two_stage", "schedule.max_steps=12"),
    "linear_probe": ("method=linear_probe", "schedule.max_steps=12"),
    "zero_shot": ("method=zero_shot",),
    "base_to_new": ("method=coop", "protocol=base_to_new", "schedule.max_steps=12"),
    "resumed": ("experiment=demo", "schedule.max_steps=400", "checkpoint_seconds=0.05"),
}
KILLED = "resumed"
# Measured numbers of metrics.json that do not depend on the clock or on the machine's memory.
EXACT = ("accuracy_percent", "zero_shot_accuracy_percent", "steps", "changed_parameters")
PATIENCE_SECONDS = 300


def main() -> int:
    """Record, check or compare results as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", help="the Git revision to compare with")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="compare with the results in FILE"
    )
    arguments = parser.parse_args()
    if sum(map(bool, vars(arguments).values())) != 1:
        parser.error("give a REVISION, --record FILE or --check FILE")
    if arguments.record:
        arguments.record.write_text(json.dumps(results_of(ROOT), indent=1) + "\n")
        return 0
    if arguments.check:
        before = json.loads(arguments.check.read_text())
    else:
        before = results_of_revision(arguments.revision)
    return compare(before, results_of(ROOT))


def results_of_revision(revision: str) -> dict[str, Any]:
    """Return the results of a revision, run in a temporary checkout of it."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(checkout), revision], check=True)
        try:
            return results_of(checkout)
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)


def results_of(checkout: Path) -> dict[str, Any]:
    """Return the results of all runs, by name, with the code of a checkout."""
    results = {}
    for name, overrides in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "so_clip",
                *COMMON,
                *overrides,
                f"results_dir={folder}",
            ]
            if name == KILLED:
                kill_in_training(command, checkout, Path(folder))
            run(command, checkout)
            results[name] = read_results(Path(folder))
        print(f"{checkout.name}: {name}", file=sys.stderr, flush=True)
    return results


def run(command: list[str], checkout: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\nin {checkout} failed:\n{ended.stderr}")


def kill_in_training(command: list[str], checkout: Path, results_dir: Path) -> None:
    """Start a run and kill its process as soon as it has written a checkpoint."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + PATIENCE_SECONDS
        while not [*results_dir.glob("*/checkpoint.pt")]:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{' '.join(command)}\nin {checkout} wrote no checkpoint.")
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


def read_results(results_dir: Path) -> dict[str, Any]:
    """Return what the only run below a folder measured, as text."""
    (metrics_file,) = results_dir.glob("[!.]*/metrics.json")
    metrics = json.loads(metrics_file.read_text())
    results: dict[str, Any] = {key: repr(metrics[key]) for key in EXACT if key in metrics}
    files = [metrics_file.with_name("history.csv"), *metrics_file.parent.glob("predictions*.csv")]
    for file in files:
        if file.exists():
            with file.open(newline="") as lines:
                for row in csv.DictReader(lines):
                    for column, value in row.items():
                        results.setdefault(f"{file.name} {column}", []).append(value)
    return results


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print a line for each run; return 1 if anything that both have differs, or is missing."""
    different = 0
    for name, expected in before.items():
        wrong = [key for key, value in expected.items() if after.get(name, {}).get(key) != value]
        losses = len(expected.get("history.csv loss", []))
        predictions = len(expected.get("predictions.csv label", []))
        verdict = f"DIFFERENT: {', '.join(wrong)}" if wrong else "equal"
        print(f"{name:15} {losses:4} losses, {predictions:4} predictions: {verdict}")
        different += bool(wrong)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
