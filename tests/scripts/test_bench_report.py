"""The benchmark of the report: its runs can be reported on, and its figures are of all commands."""

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


def test_it_measures_every_command_and_the_page(tmp_path: Path) -> None:
    # In a process of its own: this one may have a browser already, and there is only one to each.
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
    """A tenth of what is promised for: 1 GB, most of it here for the libraries."""
    bench_report.write_runs(tmp_path / "runs", 2000)
    runs = read_runs(tmp_path / "runs")
    assert (len(runs.frame), runs.skipped) == (2000, [])
    assert set(runs.frame["variant"]) == {""}
    module, *flags = bench_report.COMMANDS["report, tables only"]
    found = bench_report.measure(module, tmp_path / "runs", *flags, "-o", tmp_path / "out")
    assert found["peak_memory_mib"] < 300
    assert (tmp_path / "out" / "tables" / "accuracy.csv").stat().st_size > 100_000
