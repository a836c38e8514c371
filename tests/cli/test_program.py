"""The commands of the program: their help, their usage errors and the shell's completion."""

import subprocess
import sys

import pytest

from so_clip.cli.program import COMMANDS, COMPLETION_VARIABLE
from tests.helpers.command import call, environment, python

HEAVY = ("torch", "open_clip", "hydra", "omegaconf", "pandas", "matplotlib", "rich")


def test_help_names_all_commands():
    overview, listed = call("--help").out, call("--help", "commands").out
    for command in COMMANDS:
        assert command in overview
        assert f"  python -m so_clip {command} " in listed


def test_the_help_of_each_command_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from so_clip.__main__ import main\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv[1:] = [command, '--help']\n"
        "    print('code', main(), '\\f')\n"
        f"print(set({HEAVY}) & set(sys.modules))"
    )
    *texts, imported = python(code, *COMMANDS, "run").split("\f\n")
    for command, text in zip([*COMMANDS, "run"], texts, strict=True):
        assert text.startswith(f"Usage: python -m so_clip {command} ")
        assert text.endswith("\ncode 0 ")
    assert imported.strip() == "set()"


def test_help_for_a_command_is_found_with_the_words_in_any_order():
    text = call("table", "--help").out
    assert text == call("table", "-h").out == call("--help", "table").out
    assert "RESULTS_DIR" in text
    assert "--out" in text


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("tabel results", ["tabel: there is no such command", "'table'", "--help"]),
        ("results table", ["results: there is no such command"]),
        ("shots=1 table", ["table: a command comes first: python -m so_clip table"]),
        ("table", ["RESULTS_DIR: is missing", "table --help"]),
        ("table a b", ["table: too many arguments: b.", "table --help"]),
        ("table a --otu x", ["--otu: there is no such flag", "'--out'", "table --help"]),
        ("table a --out", ["--out: requires an argument", "table --help"]),
        ("status a --once=3", ["--once: does not take a value", "status --help"]),
        ("forecast --jsn", ["--jsn: there is no such flag", "'--json'", "forecast --help"]),
        ("draw shots=0", ["shots=0: must be 1 or more"]),
        ("predict a.safetensors a.jpg --top 0", ["--top: must be greater than or equal to 1. `"]),
        ("evaluate a.safetensors photos", ["photos: is no OPTION=VALUE", "data_root=photos"]),
        ("table /nowhere", ["/nowhere"]),
        ("report /nowhere", ["/nowhere"]),
        ("--cfg=nope", ["--cfg: 'nope' is not one of 'job'", "--help options"]),
        ("dataset=digits --cfg", ["--cfg: requires an argument"]),
    ],
)
def test_a_usage_error_is_one_message_with_a_way_out(line, parts):
    done = call(*line.split())
    assert (done.code, done.out) == (2, "")
    assert len(done.messages) == len(done.err.splitlines()) == 1
    for part in parts:
        assert part in done.err


def test_flags_may_stand_between_overrides():
    done = call("dataset=digits", "--cfg", "job", "shots=2")
    assert done.code == 0
    assert "\nshots: 2\n" in done.out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("so_clip ta", ["table"]),
        ("so_clip --mu", ["--multirun"]),
        ("so_clip table runs --o", ["--out"]),
    ],
)
def test_the_shell_completes_commands_and_flags(line, expected):
    words = str(len(line.split()) - 1)
    variables = {COMPLETION_VARIABLE: "complete_bash", "COMP_WORDS": line, "COMP_CWORD": words}
    done = subprocess.run(
        [sys.executable, "-m", "so_clip"],
        capture_output=True,
        text=True,
        env=environment() | variables,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected


def test_the_completion_script_can_be_shown():
    done = call("--show-completion")
    assert done.code in (0, 1)  # 1: the shell is unknown
    assert COMPLETION_VARIABLE in done.out or "not supported" in done.err
