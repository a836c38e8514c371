"""The table on a real terminal, live until nothing runs or until Ctrl-C; and in a pipe."""

import os
import pty
import select
import struct
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.console import Console, Group

from so_clip.results.progress import duration
from so_clip.status.screen import report
from so_clip.status.watcher import look, print_whole
from tests.helpers.command import environment, spawn
from tests.helpers.status_runs import (
    METRICS,
    progress,
    running_process,
    status,
    write_job,
    write_run,
    write_sweep,
)

LINES, COLUMNS = 12, 100


class Terminal:
    """A command that runs on its own terminal."""

    def __init__(self, *arguments: object) -> None:
        process, self._screen = pty.fork()
        if process == 0:
            size = struct.pack("HHHH", LINES, COLUMNS, 0, 0)
            ioctl(1, termios.TIOCSWINSZ, size)  # before the command reads the size
            command = [sys.executable, "-m", "so_clip", "status", *map(str, arguments)]
            told = ("LINES", "COLUMNS")  # the terminal has its own size
            known = {name: item for name, item in environment().items() if name not in told}
            os.execve(sys.executable, command, known | {"TERM": "xterm"})
        self.process = process
        self.shown = ""

    def wait_for(self, text: str, times: int = 1, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.shown.count(text) < times:
            assert time.monotonic() < deadline, self.shown
            if not self._read():
                raise AssertionError(f"{text!r} never came:\n{self.shown}")

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> int:
        """Wait until the command ends, and return its exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], 60)
        assert ready, self.shown
        try:
            read = os.read(self._screen, 65536)
        except OSError:  # Linux: the process closed its end
            return False
        self.shown += read.decode()
        return bool(read)


@pytest.mark.slow
def test_the_table_is_live_until_nothing_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "b", metrics=METRICS)
    with running_process(tmp_path / "a") as process:
        shown = Terminal(tmp_path)
        shown.wait_for("1 running", times=2)
        process.communicate()
        assert shown.end() == 0
    last = shown.shown[shown.shown.rindex(f"{tmp_path}: ") :]
    assert "2 done" in last
    assert "running" not in last


@pytest.mark.slow
def test_ctrl_c_prints_the_whole_table(tmp_path: Path) -> None:
    for number in range(40):
        write_run(tmp_path, f"b{number}", metrics=METRICS)
    with running_process(tmp_path / "a"):
        shown = Terminal(tmp_path)
        shown.wait_for("… and 34 more")  # the terminal has twelve lines
        shown.type("\x03")
        assert shown.end() == 0
    assert "… and 20 more (--all lists them)" in shown.shown
    assert "Traceback" not in shown.shown


def test_once_prints_the_table_once(tmp_path: Path) -> None:
    with running_process(tmp_path / "a"):
        shown = Terminal("--once", tmp_path)
        assert shown.end() == 0
    assert shown.shown.count("1 running") == 1


def test_a_pipe_gets_whole_lines_without_colours(tmp_path: Path) -> None:
    name = "a" * 200
    write_run(tmp_path, name, progress=progress(host="elsewhere"))
    outcome = spawn("status", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "\x1b" not in outcome.out
    assert any(name in line for line in outcome.out.splitlines())
    assert all(line == line.rstrip() for line in outcome.out.splitlines())


def test_a_folder_without_runs_and_a_missing_folder(tmp_path: Path) -> None:
    outcome = status(tmp_path)
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}: no runs yet\n")
    outcome = status(tmp_path / "nowhere")
    assert outcome.code == 2
    assert outcome.messages == [
        f"so_clip: {tmp_path / 'nowhere'}: there is no such folder. Give the one that holds runs."
    ]


def test_all_lists_every_run(tmp_path: Path) -> None:
    for number in range(30):
        write_run(tmp_path, f"a{number}", metrics=METRICS)
    assert status(tmp_path).out.count("81.11 %") == 20
    assert status(tmp_path, "--all").out.count("81.11 %") == 30


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3599, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86_399, "1 d 0 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_runs_have_a_column_for_each_option_that_differs(tmp_path: Path) -> None:
    common = ["method=so", "optimizer.T=10"]
    for number, kappa in enumerate(("0.0005", "0.01")):
        overrides = [*common, f"optimizer.density_ratio={kappa}", f"seed={number}"]
        write_run(tmp_path, f"a{number}", metrics=METRICS, provenance={"overrides": overrides})
    hostile = {"kind": "Bad", "message": "\x1b[31m[link](x)", "overrides": [*common, "seed=7"]}
    write_run(tmp_path, "b", error=hostile)
    out = status(tmp_path, "--once").out
    (header,) = [line for line in out.splitlines() if line.startswith("state")]
    assert header.split()[:4] == ["state", "run", "kappa", "seed"]
    rows = [line.split()[:4] for line in out.splitlines() if line.startswith(("done", "failed"))]
    assert sorted(rows)[:2] == [["done", "a0", "0.0005", "0"], ["done", "a1", "0.01", "1"]]
    assert rows[0][:3] == ["failed", "b", "7"]
    assert "Bad: \\u001b[31m[link](x)" in out


def test_a_terminal_of_80_columns_has_one_line_for_each_run_and_sweep(tmp_path: Path) -> None:
    command = ["-m", "experiment=demo", "dataset=folder", "data_root=photos", "seed=1,2"]
    jobs = [[*command[1:-1], f"seed={seed}"] for seed in (1, 2)]
    sweep = write_sweep(tmp_path, "2026-11-30_02-07-54-877713", command, jobs)
    names = [f"photos-tiny-so-4shot-seed{seed}-{seed}26e5da46700" for seed in (1, 2)]
    for number, (name, job) in enumerate(zip(names, jobs, strict=True)):
        run = write_run(tmp_path, name, metrics=METRICS, provenance={"overrides": job})
        write_job(sweep, number, "done", run_dir=str(run))
    whole = report(look(tmp_path))
    lines = printed(whole, 80)
    assert [line.split()[:2] for line in lines if line.startswith("2026-")] == [[sweep.name, "2"]]
    ends = [line.split()[1] for line in lines if line.startswith("done")]
    assert sorted(end[-12:] for end in ends) == [name[-12:] for name in names]
    assert not [line for line in lines if line.startswith(" ")]
    assert not {"time left", "remark", "failed"} & set(" ".join(lines).split("  "))
    assert all(any(name in line for line in printed(whole, 200)) for name in names)


def printed(whole: Group, width: int) -> list[str]:
    """Return the lines on a terminal that has `width` columns."""
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        print_whole(whole, console)
    return captured.get().splitlines()
