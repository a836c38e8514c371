"""How the command line ends: its exit codes, its one message, and its traceback on demand."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from so_clip.__main__ import guarded
from so_clip.errors import InputError, RunFailed
from tests.helpers.command import call, environment, spawn, until

QUICK = ("method=zero_shot", "evaluation.workers=0")


def _raising(error: BaseException):
    def command(arguments: list[str]) -> None:
        raise error

    return lambda: guarded(command)


@pytest.mark.parametrize(
    ("error", "code", "messages"),
    [
        (InputError("shots=0: no"), 2, ["so_clip: shots=0: no"]),
        (RunFailed("the loss became nan"), 1, ["so_clip: the loss became nan"]),
        (KeyboardInterrupt(), 130, ["so_clip: interrupted"]),
        (
            ZeroDivisionError("a bug"),
            1,
            [
                "so_clip: ZeroDivisionError: a bug",
                "so_clip: that was not expected, and may be a bug: --debug shows where it "
                "happened.",
            ],
        ),
    ],
)
def test_what_is_raised_decides_code_and_message(error, code, messages):
    done = call(main=_raising(error))
    assert done.code == code
    assert done.err.splitlines() == messages
    assert done.out == ""


def test_success_is_zero_and_debug_is_taken_out_of_the_arguments():
    seen: list[list[str]] = []
    done = call("a=1", "--debug", "b=2", main=lambda: guarded(seen.append))
    assert (done.code, done.err) == (0, "")
    assert seen == [["a=1", "b=2"]]


def test_a_run_ends_with_zero_and_a_table(tmp_path):
    done = spawn(*QUICK, f"results_dir={tmp_path / 'runs'}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [line.split("  ")[0] for line in done.out.strip().splitlines()] == [
        *("zero-shot accuracy", "adapted accuracy", "peak memory", "training", "run folder")
    ]
    folder = Path(done.out.split()[-1])
    assert (folder / "metrics.json").is_file()
    # Neither Hydra nor torch left anything in the folder it was started from.
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert "Warning" not in done.err


def test_bad_input_is_one_message_and_debug_adds_the_traceback():
    plain = spawn("shots=0")
    assert (plain.code, plain.out) == (2, "")
    assert plain.err == "so_clip: shots=0: must be 1 or more.\n"
    debugged = spawn("shots=0", "--debug")
    assert debugged.code == 2
    assert debugged.err.startswith("Traceback")
    assert "settings.py" in debugged.err
    assert debugged.err.endswith(plain.err)


def test_a_command_line_that_hydra_cannot_read_is_one_message_too():
    done = spawn("dataset=eurosta", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert len(done.messages) == 1


@pytest.mark.parametrize("flag", ["--nonsense", "-x", "--multi-run", "--seed=3"])
def test_an_unknown_flag_is_named(flag):
    done = call(flag)
    assert done.code == 2
    assert len(done.messages) == 1
    name = flag.partition("=")[0]
    assert f"{name}: there is no such flag" in done.err
    assert "--help" in done.err


@pytest.mark.parametrize("command", ["draw", "table", "report"])
def test_the_other_commands_end_alike(command, tmp_path):
    bad = "shots=0" if command == "draw" else tmp_path / "nowhere"
    done = spawn(command, bad)
    assert done.code == 2
    assert len(done.messages) == 1
    assert "Traceback" not in done.err
    assert "Traceback" in spawn(command, bad, "--debug").err


def test_an_interrupted_run_says_so_and_is_not_taken_for_a_finished_one(tmp_path):
    arguments = ("experiment=demo", "schedule.stop_loss=0", "schedule.max_steps=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "so_clip", *arguments, f"results_dir={tmp_path}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    until(lambda: [*tmp_path.glob("*/config.yaml")], process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "so_clip: interrupted"
    assert out == ""
    (folder,) = tmp_path.glob("[!.]*")
    assert not (folder / "metrics.json").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_reader_who_has_enough_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "so_clip", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
