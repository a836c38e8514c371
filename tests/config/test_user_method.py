"""docs/how_to/own_method.md: a method in the user's own folder, exactly as the page shows it."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.helpers.command import ROOT, Outcome, call

QUICK = ("experiment=demo", "schedule.max_steps=2", "evaluation.workers=0", "threads=1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, in a folder that is the current one."""
    page = (ROOT / "docs" / "how_to" / "own_method.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"`([^`\n]+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    return tmp_path


def run(*options: object) -> Outcome:
    return call("--config-dir", "mine", *QUICK, "method=biases", *options, "results_dir=runs")


def test_the_page_s_method_runs_and_is_repeated_from_its_folder(folder):
    done = run("adapter.tower=text")
    assert (done.code, done.messages) == (0, [])
    (made,) = (folder / "runs").glob("digits-tiny-biases-*")
    metrics = json.loads((made / "metrics.json").read_text())
    assert metrics["settings"]["adapter"] == {"name": "biases", "tower": "text"}
    changed = (made / "changed.csv").read_text().splitlines()[1:]
    assert changed
    assert all(line.partition(",")[0].endswith("bias") for line in changed)
    assert "finished before" in call("--config-dir", "mine", "--from", made).out
    without = call("--from", made)
    assert without.code == 2
    assert "adapter.name=biases" in without.err
    assert "--config-dir FOLDER" in without.err


@pytest.mark.slow
def test_the_page_s_method_is_tested_again_from_its_folder(folder):
    assert run("adapter.tower=text").code == 0
    (made,) = (folder / "runs").glob("digits-tiny-biases-*")
    again = call("evaluate", made, "--config-dir", "mine", "results_dir=again")
    assert again.code == 0, again.err
    (evaluation,) = (folder / "again").glob("evaluation-*")
    for name in ("predictions.csv", "per_class.csv"):
        assert (evaluation / name).read_bytes() == (made / name).read_bytes()
    without = call("evaluate", made)
    assert without.code == 2
    assert "--config-dir FOLDER" in without.err


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("adapter.towr=text", "adapter.towr"),
        ("+adapter.depth=1", "Biases has no such option"),
        ("adapter.tower=nose", "nose"),
        ("adapter._target_=my_method.Nothing", "adapter._target_=my_method.Nothing"),
        ("adapter._target_=collections.OrderedDict ~adapter.tower", "makes a OrderedDict"),
    ],
)
def test_a_mistake_in_the_users_method_is_named(option, message, folder):
    done = run(*option.split())
    assert (done.code, len(done.messages)) == (2, 1), done.err
    assert message in done.err
    assert not (folder / "runs").exists()
