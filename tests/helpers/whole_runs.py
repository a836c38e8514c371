"""Whole runs from the command line, in this process, and what they leave, read back."""

import csv
import json
from pathlib import Path
from typing import Any

from tests.helpers.command import call

# The demo with fewer steps.
STEPS = 6


class Run:
    """A finished run's folder, read back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text())

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as file:
            return [*csv.DictReader(file)]

    def column(self, name: str, column: str) -> list[float]:
        return [float(row[column]) for row in self.rows(name)]


def run(results_dir: Path, *arguments: str) -> Run:
    done = call(f"results_dir={results_dir}", "evaluation.workers=0", *arguments)
    assert done.code == 0, done.err
    assert done.messages == []
    assert "Warning" not in done.err
    return Run(Path(done.out.rpartition("run folder")[2].strip()))
