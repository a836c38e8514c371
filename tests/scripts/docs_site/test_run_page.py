"""A fault of a page fails in its test; recording writes what was printed."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.docs_site import run_page, warm_python
from scripts.docs_site.record import record
from scripts.docs_site.run_page import PageError, check, run
from scripts.docs_site.stand_ins import MOST_RUNS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with warm_python.running(tmp_path_factory.mktemp("warm")) as place:
        yield place


@pytest.fixture
def follow(tmp_path: Path, warm: str):
    """Run a page of this text in an empty home and compare its outputs; return the home."""

    def follow(text: str) -> Path:
        page, home, scratch = tmp_path / "page.md", tmp_path / "home", tmp_path / "scratch"
        page.write_text(text, encoding="utf-8")
        home.mkdir()
        scratch.mkdir()
        check(run(page, home, scratch, warm), page)
        return home

    return follow


def block(kind: str, text: str) -> str:
    return f"```{kind}\n{text}\n```\n\n"


FAULTS = {
    "a command that fails": (block("sh", "python -m so_clip table nowhere"), "nowhere"),
    "a command that fails before others": (block("sh", "false\ntrue"), "line 1: false"),
    "a command that fails in a pipe": (block("sh", "cat missing | wc -l"), "missing"),
    "an unknown program": (block("sh", "docker ps"), "docker: command not found"),
    "an option that does not exist": (
        block("sh", "python -m so_clip experiment=demo optimiser.lr=1"),
        "optimiser",
    ),
    "an extra that does not exist": (block("sh", "pip install -e '.[gpu]'"), "no extra gpu"),
    "a target that does not exist": (block("sh", "make tea"), "No rule to make target"),
    "another kind of block": (block("ruby", "puts 1"), "'ruby' is not known"),
    "a file without a name": (block("yaml", "a: 1"), "has no file"),
    "a command in a block without a kind": (block("", "python -m so_clip"), "is a command"),
    "a file outside of the home": (
        "`../a.json`:\n\n" + block("json", "{}"),
        "../a.json is outside of the reader's home",
    ),
    "a redirection out of the home": (
        block("sh", "echo a > /tmp/a.txt"),
        "/tmp/a.txt is outside of the reader's home",
    ),
    "a folder above the home": (
        block("sh", "mkdir $HOME/../a"),
        "$HOME/../a is outside of the reader's home",
    ),
    "an undefined name": (block("python", "print(undefined)"), "name 'undefined' is not defined"),
    "an object that nobody gives": (
        "<!-- given: nothing -->\n" + block("python", "nothing"),
        "no function nothing",
    ),
    "another output": (
        block("sh", "echo 4 runs") + block("output", "5 runs"),
        "the output is another",
    ),
    "a missing line of output": (
        block("sh", "echo a; echo b") + block("output", "a"),
        "the output is another",
    ),
    "an output without a block before": (block("output", "a"), "follows no sh or Python block"),
    "a choice of lines that leaves none": (
        block("sh", "echo a") + "<!-- output: lines with b -->\n" + block("output", "b"),
        "no line is left",
    ),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_page_is_found(text: str, message: str, follow) -> None:
    with pytest.raises(PageError) as error:
        follow(f"# A page\n\n{text}")
    assert message in str(error.value)
    assert "page.md:" in str(error.value)


def test_blocks_share_a_folder_variables_and_the_scope_of_python(follow) -> None:
    home = follow(
        block("sh", "mkdir a && cd a\nexport B=2")
        + "`a/c.json`:\n\n"
        + block("json", '{"d": 3}')
        + block("python", "import json\nd = json.load(open('c.json'))['d']")
        + block("python", "print(d)")
        + block("output", "3")
        + block("sh", 'echo "$B in $(basename "$PWD")" >kept.txt')
    )
    assert (home / "a" / "kept.txt").read_text() == "2 in a\n"


def test_a_page_without_outputs_takes_one_step_and_few_runs(follow) -> None:
    command = (
        "python -m so_clip -m experiment=demo seed=1,2,3 method=so shots=4,8,16 backbone=vit_b16"
    )
    home = follow(block("sh", command))
    runs = list((home / "results" / "runs").glob("digits-tiny-so-*"))
    assert 2 <= len(runs) <= MOST_RUNS
    for run_folder in runs:
        history = (run_folder / "history.csv").read_text().splitlines()
        assert len(history) == 2  # the header and one step


def test_what_a_page_leaves_running_ends_with_it(follow) -> None:
    home = follow(block("sh", "sleep 1000 &\necho $! >pid"))
    pid = int((home / "pid").read_text())
    for _ in range(200):  # a killed process takes a moment to end
        if not _is_running(pid):
            break
        time.sleep(0.05)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def test_recording_writes_what_was_printed_and_nothing_the_second_time(
    tmp_path: Path, warm: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        block("sh", "python -m so_clip experiment=demo schedule.max_steps=2 >all.txt; cat all.txt")
        + "<!-- output: lines with accuracy -->\n"
        + block("output", "")
        + block("python", "print(2 + 2)\nprint('a')")
        + block("output", "old\nlines\nof output")
    )
    assert record(page, tmp_path / "first", warm) == 2
    text = page.read_text()
    assert "zero-shot accuracy  61.30 %\nadapted accuracy" in text
    assert "run folder" not in text
    assert "```output\n4\na\n```\n" in text
    assert record(page, tmp_path / "second", warm) == 0
    assert page.read_text() == text


def test_an_output_that_would_end_its_block_is_not_recorded(tmp_path: Path, warm: str) -> None:
    page = tmp_path / "page.md"
    text = block("sh", "printf 'a\\n```\\nb\\n'") + block("output", "old")
    page.write_text(text)
    with pytest.raises(PageError, match="would end its block"):
        record(page, tmp_path / "place", warm)
    assert page.read_text() == text


@pytest.mark.parametrize("text", [block("sh", "sleep 60"), block("python", "while True: pass")])
def test_a_block_that_takes_too_long_ends(text: str, follow, monkeypatch) -> None:
    monkeypatch.setattr(run_page, "PATIENCE_SECONDS", 1)
    with pytest.raises(PageError, match="takes more than 1 s"):
        follow(text)


def test_a_page_that_fails_is_not_changed(tmp_path: Path, warm: str) -> None:
    page = tmp_path / "page.md"
    text = block("sh", "echo a") + block("output", "old") + block("sh", "false")
    page.write_text(text)
    with pytest.raises(PageError):
        record(page, tmp_path / "place", warm)
    assert page.read_text() == text


def test_a_block_that_needs_weights_is_small_on_a_page_with_outputs(follow) -> None:
    home = follow(
        block("sh", "python -m so_clip experiment=demo schedule.max_steps=2 >shown.txt; echo done")
        + block("output", "done")
        + "<!-- small -->\n"
        + block("sh", "python -m so_clip experiment=demo backbone=vit_b16 method=adamw")
        + "<!-- small -->\n"
        + block(
            "python", "import so_clip\nassert so_clip.load('vit_b16').backbone.image_size < 100"
        )
    )
    steps = {
        folder.name.split("-")[2]: len((folder / "history.csv").read_text().splitlines()) - 1
        for folder in (home / "results" / "runs").glob("digits-tiny-*")
    }
    assert steps == {"so": 2, "adamw": 1}


def test_a_command_of_the_exceptions_is_not_run(follow) -> None:
    follow(block("sh", "python -m so_clip -m \\\n  hydra/launcher=ray nonsense=1\ntrue"))


def test_programs_that_call_each_other_without_an_end_are_stopped(follow) -> None:
    code = "import subprocess, sys; sys.exit(subprocess.run(['python', 'again.py']).returncode)"
    with pytest.raises(PageError) as error:
        follow("`again.py`:\n\n" + block("python", code) + block("sh", "python again.py"))
    assert "call each other without an end" in str(error.value)
