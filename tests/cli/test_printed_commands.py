"""Commands that the program prints run as printed, whatever the names of folders are."""

from pathlib import Path

import pytest

from so_clip.config.compose import compose
from so_clip.system.commands import override
from tests.helpers.archives import archive, images, split_bytes, split_source, write_card, zipped
from tests.helpers.command import Outcome, call, shell_words
from tests.helpers.file_server import running
from tests.helpers.made_datasets import write_class_folders
from tests.helpers.odd_paths import ODD_NAMES, ODDEST

ZERO_SHOT = ("method=zero_shot", "evaluation.workers=0", "evaluation.cache_dir=null")
# The fast tests try one name that has all the signs, the slow ones each name alone.
NAMES = [ODDEST, *(pytest.param(name, marks=pytest.mark.slow) for name in ODD_NAMES)]


def printed(outcome: Outcome) -> list[list[str]]:
    """Return the words after `python -m so_clip` of each printed command."""
    texts = (outcome.out + outcome.err).splitlines()
    lines = [
        line[line.index("python -m so_clip") :] for line in texts if "python -m so_clip" in line
    ]
    return [shell_words(line)[2:] for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_prints_a_run_and_accepts_it_as_its_own_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    write_class_folders(folder, ("ant", "bee"), images=6)
    names = override("dataset.name", "animals")
    done = call("doctor", "dataset=folder", override("data_root", folder), names)
    assert done.code == 0, done.out + done.err
    (words,) = printed(done)
    config = compose(words)
    assert Path(config.data_root) == folder
    assert call("doctor", *words).out == done.out


def test_a_run_is_made_by_the_command_that_the_doctor_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ODDEST
    write_class_folders(folder, ("ant", "bee"), images=6)
    options = (*ZERO_SHOT, "backbone=tiny", override("results_dir", Path(ODDEST, "runs")))
    done = call("doctor", "dataset=folder", override("data_root", folder), *options)
    (words,) = printed(done)
    assert "backbone=tiny" in words
    assert call(*words).code == 0
    assert [*Path(ODDEST, "runs").glob("*/metrics.json")]


@pytest.mark.parametrize("name", NAMES)
def test_prepare_runs_as_printed_and_then_the_first_run_is_named(name, tmp_path):
    root, cards = tmp_path / name / "data", tmp_path / name / "cards"
    root.mkdir(parents=True)
    places = override("data_root", root), override("cards_dir", cards)
    with running() as server:
        split = split_source(server.serve("split_small.json", split_bytes()))
        write_card(cards, archive(server.serve("a.zip", zipped(images()))), split)
        absent = call("doctor", "dataset=small", *places)
        assert absent.code == 1
        commands = printed(absent)
        assert commands[-1][0] == "prepare"
        assert call(*commands[-1]).code == 0
    (words,) = printed(call("doctor", *places))
    assert words == ["dataset=small", *places, "backbone=vit_b16"]


@pytest.mark.slow
def test_a_sweep_prints_the_commands_of_its_failed_runs_and_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = override("results_dir", Path(ODDEST))
    done = call("-m", "seed=-1,-2", override("template", ODDEST), place)
    assert done.code == 2
    first, second, again = printed(done)
    for words, message in zip((first, second), done.messages, strict=True):
        assert call(*words).messages == [message]
    assert call(*again).messages == done.messages
    assert [*tmp_path.iterdir()] == []


def test_a_report_without_runs_prints_a_run_for_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(ODDEST).mkdir()
    (words,) = printed(call("table", Path(ODDEST)))
    assert words == ["experiment=demo", override("results_dir", Path(ODDEST))]
