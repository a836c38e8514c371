"""The benchmark of the report: it measures every command, on runs that the report can read."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from scripts import bench_report
from so_clip.report.read import read_runs
from tests.helpers.command import environment

pytestmark = pytest.mark.slow


def test_it_measures_every_command_and_the_page(tmp_path: Path) -> None:
    # In a new process: this one may have the browser of tests, and only one is possible.
    arguments = ["--runs", "33", "--out", str(tmp_path / "t.csv")]
    command = [sys.executable, bench_report.__file__, *arguments]
    subprocess.run(command, check=True, env=environment())
    table = pd.read_csv(tmp_path / "t.csv").set_index("what")
    assert list(table.index) == [*bench_report.COMMANDS, "page"]
    assert (table["runs"] == 33).all()
    commands = table.drop(index="page")
    assert (commands[["wall_seconds", "cpu_seconds", "peak_memory_mib"]] > 0).all(axis=None)
    assert 0 < table.loc["page", "page_mb"] < 10
    assert table["hardware"].str.contains("cores").all()


def test_tables_of_two_thousand_runs_take_little_memory(tmp_path: Path) -> None:
    """A tenth of the 20,000 runs that must fit in 1 GB; most of it here is for libraries."""
    bench_report.write_runs(tmp_path / "runs", 2000)
    runs = read_runs(tmp_path / "runs")
    assert (len(runs.frame), runs.skipped) == (2000, [])
    assert set(runs.frame["variant"]) == {""}
    module, *flags = bench_report.COMMANDS["report, tables only"]
    found = bench_report.measure(module, tmp_path / "runs", *flags, "-o", tmp_path / "out")
    assert found["peak_memory_mib"] < 300
    assert (tmp_path / "out" / "tables" / "accuracy.csv").stat().st_size > 100_000
