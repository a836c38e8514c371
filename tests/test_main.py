"""How the command line ends: exit codes, one message, and a traceback on demand."""

import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import so_clip
from so_clip.cli.guard import guarded
from so_clip.errors import InputError, RunFailed, Terminated
from so_clip.system.paths import PACKAGE_DIR
from tests.helpers.command import call, captured, ended, environment, spawn, started, until

QUICK = ("method=zero_shot", "evaluation.workers=0")


@pytest.mark.parametrize(
    ("error", "code", "messages"),
    [
        (InputError("shots=0: no"), 2, ["so_clip: shots=0: no"]),
        (RunFailed("the loss became nan"), 1, ["so_clip: the loss became nan"]),
        (KeyboardInterrupt(), 130, ["so_clip: interrupted"]),
        (Terminated(), 143, ["so_clip: terminated"]),
        (
            ZeroDivisionError("a bug"),
            1,
            [
                "so_clip: ZeroDivisionError: a bug",
                "so_clip: this error is unexpected and may be a bug. --debug shows where it "
                "happened.",
            ],
        ),
    ],
)
def test_an_exception_decides_the_exit_code_and_the_message(error, code, messages):
    def command(arguments: list[str]) -> None:
        raise error

    done = captured(lambda: guarded(command))
    assert done.code == code
    assert done.err.splitlines() == messages
    assert done.out == ""


def test_success_is_zero_and_debug_is_removed_from_the_arguments():
    seen: list[list[str]] = []
    done = captured(lambda: guarded(seen.append), "a=1", "--debug", "b=2")
    assert (done.code, done.err) == (0, "")
    assert seen == [["a=1", "b=2"]]


def test_a_run_ends_with_zero_and_a_table(tmp_path):
    done = spawn(*QUICK, f"results_dir={tmp_path / 'runs'}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [line.split("  ")[0] for line in done.out.strip().splitlines()] == [
        "zero-shot accuracy",
        "peak memory",
        "training",
        "run folder",
    ]
    folder = Path(done.out.split()[-1])
    assert (folder / "metrics.json").is_file()
    # Hydra and torch leave nothing in the working directory.
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert "Warning" not in done.err


def test_the_short_help_is_the_answer_to_no_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = call()
    assert (bare.code, bare.err) == (0, "")
    assert bare.out == call("--help").out
    assert "python -m so_clip experiment=demo" in bare.out
    assert [*tmp_path.iterdir()] == []


def test_the_version_is_the_projects():
    assert call("--version").out == f"so_clip {so_clip.__version__}\n"
    assert so_clip.__version__ == version("so-clip")


def test_the_package_shows_what_can_be_imported_from_it():
    assert {"SO", "adapt", "adapters", "few_shot", "load", "sampled_gradients"} < {*dir(so_clip)}
    assert all(getattr(so_clip, name) is not None for name in dir(so_clip))
    with pytest.raises(AttributeError, match="'nothing'"):
        so_clip.nothing  # noqa: B018
    assert (PACKAGE_DIR / "py.typed").exists()


def test_bad_input_is_one_message_and_debug_adds_the_traceback():
    message = "so_clip: shots=0: must be 1 or more.\n"
    plain = call("shots=0")
    assert (plain.code, plain.out, plain.err) == (2, "", message)
    debugged = spawn("shots=0", "--debug")
    assert debugged.code == 2
    assert debugged.err.startswith("Traceback")
    assert debugged.err.endswith(message)


@pytest.mark.parametrize("flag", ["--nonsense", "-x", "--multi-run", "--seed=3"])
def test_an_unknown_flag_is_named(flag):
    done = call(flag)
    assert done.code == 2
    assert len(done.messages) == 1
    assert f"{flag.partition('=')[0]}: there is no such flag" in done.err
    assert "--help" in done.err
    assert ("'--multirun'" in done.err) == (flag == "--multi-run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_an_interrupted_run_says_so_and_does_not_count_as_finished(number, code, word, tmp_path):
    arguments = ("experiment=demo", "schedule.stop_loss=0", "schedule.max_steps=100000")
    with started(*arguments, f"results_dir={tmp_path}") as process:
        until(lambda: [*tmp_path.glob("*/config.yaml")], process)
        process.send_signal(number)
        done = ended(process)
    assert (done.code, done.out, done.err) == (code, "", f"so_clip: {word}\n")
    (folder,) = tmp_path.glob("[!.]*")
    assert not (folder / "metrics.json").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_a_closed_pipe_is_no_error(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "so_clip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
