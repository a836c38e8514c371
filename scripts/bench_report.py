"""Measure the time and memory of status, table, report and page for thousands of runs.

python scripts/bench_report.py    # `make bench` too; results/tables/report_scale_cpu.csv, 3 minutes

The runs are artificial, in a temporary folder of 0.3 GB: 11 datasets, 5 numbers of shots, 3 seeds
and as many methods as needed. Each has the files of a real run, with 2,000 test images. Each
command runs in a new process; the files are in the system's page cache. If Chromium and playwright
are installed, the page is opened in Chromium.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.report.measures import DATASETS
from so_clip.results.run_files import (
    CONFIG_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
)

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results" / "tables" / "report_scale_cpu.csv"
RUNS, IMAGES, CLASSES, STEPS = 20_000, 2_000, 100, 200
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
# Files with a line per image are as large as real ones; the runs share this many by hard links.
_KINDS = 16
COMMANDS = {
    "status": ("status", "--once"),
    "table": ("table",),
    "report, tables only": ("report", "--tables-only"),
    "report": ("report",),
}
# The process itself reads its peak: the system's count for a child includes its parent's memory.
_CALL = """
import sys
from pathlib import Path
from so_clip.__main__ import main
code = main()
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(code)
"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, make the runs, measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        runs, out = Path(folder) / "runs", Path(folder) / "out"
        write_runs(runs, options.runs)
        rows = []
        for name, (command, *flags) in COMMANDS.items():
            to = [] if name == "status" else ["-o", str(out / name)]
            rows.append({"what": name, "runs": options.runs} | measure(command, runs, *flags, *to))
            print(rows[-1], flush=True)
        page = out / "report" / "index.html"
        rows.append({"what": "page", "runs": options.runs, "page_mb": page.stat().st_size / 1e6})
        rows[-1] |= painted(page)
    table = write_table(rows, options.out, torch.device("cpu"), "python scripts/bench_report.py")
    print(table.iloc[:, :-4].to_string(index=False))


def write_runs(root: Path, count: int) -> None:
    """Write the folders of `count` finished runs, all different."""
    kinds = root.parent / "kinds"
    _write_kinds(kinds)
    template = from_config(compose(["dataset=dtd", "backbone=vit_b16"])).record()
    cells = product(range(count), SHOTS, SEEDS, DATASETS)
    for number, (method, shots, seed, dataset) in enumerate(islice(cells, count)):
        folder = root / f"{dataset}-vit_b16-method{method}-{shots}shot-seed{seed}-{number:012x}"
        folder.mkdir(parents=True)
        choice = {"dataset": dataset, "shots": shots, "seed": seed, "method": f"m{method}"}
        choice |= {"method_title": f"Method {method}"}
        values = {
            METRICS_FILE: _metrics(number) | choice | {"settings": template | choice},
            PROVENANCE_FILE: _provenance(number, choice),
        }
        for name, content in values.items():
            (folder / name).write_text(json.dumps(content, indent=2))
        (folder / CONFIG_FILE).touch()
        for file in (kinds / str(number % _KINDS)).iterdir():
            os.link(file, folder / file.name)


def _metrics(number: int) -> dict[str, Any]:
    """Return metrics like those of a real run, different for each number."""
    spread = (number * 7919 % 4001) / 100
    return {
        "backbone": "ViT-B-16-quickgelu",
        "protocol": "all",
        "imbalance": None,
        "split_sha256": "0" * 64,
        "run_fingerprint": f"{number:064x}",
        "tested_on": "test",
        "accuracy_percent": 50 + spread,
        "zero_shot_accuracy_percent": 44.3,
        "mean_class_accuracy_percent": 50 + spread,
        "test_images": IMAGES,
        "expected_calibration_error_percent": spread / 10,
        "evaluate_seconds": 30.0,
        "peak_memory_mib": 900 + spread,
        "train_seconds": 60 + spread,
        "steps": STEPS,
        "final_loss": 0.1,
        "trainable_parameters": 85_000_000,
        "changed_parameters": 42_500,
        "device": "some GPU",
        "precision": "bf16",
        "processes": 1,
    }


def _provenance(number: int, choice: dict[str, Any]) -> dict[str, Any]:
    overrides = [f"{key}={value}" for key, value in choice.items() if key != "method_title"]
    return {
        "overrides": overrides,
        "finished_at": f"2026-01-{1 + number % 28:02d}T12:00:{number % 60:02d}+00:00",
        "commit": "a" * 40,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "hardware": {"device": "some GPU", "processor": "some processor", "torch_threads": 8},
        "backbone_weights_sha256": "b" * 64,
    }


def _write_kinds(folder: Path) -> None:
    """Write predictions, class accuracies and losses for `_KINDS` kinds of runs."""
    for kind in range(_KINDS):
        generator = np.random.default_rng(kind)
        label = np.arange(IMAGES) % CLASSES
        paths = [f"some_class_{k}/image_{number:05d}.jpg" for number, k in enumerate(label)]
        columns: dict[str, Any] = {"path": paths, "label": label}
        for prefix, right in (("zero_shot_", 0.44), ("", 0.5 + kind / 40)):
            wrong = generator.random(IMAGES) > right
            shift = generator.integers(1, CLASSES, IMAGES)
            columns[f"{prefix}prediction"] = (label + wrong * shift) % CLASSES
            columns[f"{prefix}confidence"] = generator.beta(4, 2, IMAGES).round(6)
        share = [100.0 * (columns["prediction"][label == k] == k).mean() for k in range(CLASSES)]
        classes = {
            "label": range(CLASSES),
            "name": [f"a class with a name, number {k}" for k in range(CLASSES)],
            "images": IMAGES // CLASSES,
            "zero_shot_accuracy_percent": 44.3,
            "accuracy_percent": share,
        }
        steps = np.arange(1, STEPS + 1)
        history = {"step": steps, "loss": 2 * np.exp(-steps / 50) + 0.1, "lr": 2e-4}
        files = {PREDICTIONS_FILE: columns, PER_CLASS_FILE: classes, HISTORY_FILE: history}
        (folder / str(kind)).mkdir(parents=True)
        for name, columns in files.items():
            pd.DataFrame(columns).to_csv(folder / str(kind) / name, index=False)


def measure(command: str, *arguments: object) -> dict[str, float]:
    """Run a command; return its wall and CPU seconds and its peak memory in MiB.

    Raises:
        CalledProcessError: the command failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CALL, command, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    peak_kib = int(done.stdout.splitlines()[-1])
    return {"wall_seconds": seconds, "cpu_seconds": cpu, "peak_memory_mib": peak_kib / 1024}


def painted(page: Path) -> dict[str, float]:
    """Return the seconds until a browser first paints the page, and to sort its table of runs."""
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        return {}
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, as in a container.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(f"file://{page}#/runs")
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        tab.wait_for_selector("#runs tbody tr")
        found = {"first_paint_seconds": tab.evaluate(paint) / 1000}
        began = time.perf_counter()
        tab.click("#runs button[data-key=train_seconds]")
        tab.wait_for_selector("#runs th[aria-sort]:has(button[data-key=train_seconds])")
        found["sort_seconds"] = time.perf_counter() - began
        browser.close()
    return found


if __name__ == "__main__":
    main()
