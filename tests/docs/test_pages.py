"""README.md, docs/ and results/README.md agree with the code: commands, options, links, paths."""

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from so_clip.config.compose import compose
from so_clip.config.kinds import kind_of
from so_clip.config.trees import RUNS, SENTENCES
from so_clip.data.cards.card import USER_LAYOUTS, card_names
from so_clip.data.sentences.card import known_sentence_cards
from so_clip.version import RESULTS_VERSION
from tests.helpers.command import ROOT, call
from tests.helpers.doc_pages import (
    ALL_PAGES,
    COMMANDS,
    PAGES,
    PROGRAM,
    README,
    all_lines,
    blocks,
    follow,
    inline_code,
    is_run,
    lines,
    links,
    single_runs,
    so_clip_arguments,
)
from tests.helpers.made_datasets import write_class_folders, write_dtd, write_eurosat
from tests.helpers.made_sentences import files_of, rows, write

NAMES = [page.relative_to(ROOT).as_posix() for page in ALL_PAGES]
FOLDERS = ("so_clip", "conf", "docs", "scripts", "tests", "datasets", "results")
# Written by a reader or by a run, so they are not in the repository.
MADE = {"results/runs", "results/events", "results/"}
# test_your_images_page.py follows your_images.md.
FOLLOWED = [page for page in PAGES if page.stem != "your_images"]
TABLES = (ROOT / "results" / "tables", ROOT / "results" / "figures")


@cache
def known_options() -> frozenset[str]:
    """Return the names of all options of runs: groups, and the keys of every choice in conf/."""
    found = {"hydra/launcher", "hydra.launcher.n_jobs", "hydra.launcher.partition"}
    for folder in (ROOT / "conf").iterdir():
        if folder.is_dir():
            found.add(folder.name)
            for file in folder.glob("*.yaml"):
                keys = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
                found |= {f"{folder.name}.{key}" for key in keys}
    for tree in (RUNS, SENTENCES):
        for key, value in compose([], tree=tree).items():
            found |= {f"{key}.{name}" for name in value} if isinstance(value, DictConfig) else {key}
    return frozenset(found | {"dataset.split_file"})


@cache
def help_of(command: str) -> str:
    outcome = call(command, "--help")
    assert outcome.code == 0, outcome.err
    return outcome.out


def extras(line: list[str]) -> set[str]:
    match = re.search(r"\[([\w,]+)\]", line[-1])
    return set(match[1].split(",")) if match else set()


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file(name: str):
    page = ROOT / name
    missing = [link for link in links(page) if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_every_named_path_exists(name: str):
    for code in inline_code(ROOT / name):
        path = code.removeprefix("python ").split(" ")[0]
        is_path = path.split("/")[0] in FOLDERS and "/" in path
        if is_path and path not in MADE and not re.search(r"NAME|<", path):
            assert (ROOT / path).exists(), code
        elif re.fullmatch(r"(figures/)?[\w*]+\.(csv|png)", code) and name.startswith("results"):
            assert any(list(folder.glob(Path(code).name)) for folder in TABLES), code


@pytest.mark.parametrize("name", NAMES)
def test_every_option_exists(name: str):
    commands_help = "".join(map(help_of, ("prepare", "doctor", "evaluate", "meta")))
    for code in inline_code(ROOT / name):
        for word in code.split():
            option = re.match(r"([a-z_]+(?:[./][a-zT_]+)*)=(?!True$|False$)", word)
            if option and not code.startswith(("python", "'", '"')):
                known = option[1] in known_options() or f" {option[1]}=" in commands_help
                assert known, code
            if word.startswith("--") and not code.startswith(("python scripts", "scripts")):
                helps = [call("--help", "commands").out, *map(help_of, COMMANDS)]
                assert any(word in text for text in helps), code


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_valid(name: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in all_lines(ROOT / name):
        arguments = so_clip_arguments(line)
        if arguments:
            # Readers write the card `mine`; here another dataset stands for it.
            given = [word for word in arguments if not word.startswith("cards_dir=")]
            check_so_clip([word.replace("dataset=mine", "dataset=dtd") for word in given])
        elif line[0] == "make":
            assert re.search(rf"(?m)^{line[1]}:", makefile), line
        elif line[:2] == ["pip", "install"]:
            assert extras(line) <= set(project["optional-dependencies"]), line
        elif line[0] == "python" and line[1] != "-c":
            (file,) = (word for word in line if word.endswith(".py"))
            assert (ROOT / file).is_file(), line
        else:
            assert line[0] in ("python", "tensorboard", ".", "torchrun"), line


def check_so_clip(arguments: list[str]) -> None:
    """Compose a run, for each value of a sweep; look up the options of a command in its help."""
    if is_run(arguments):
        tree, words = kind_of([word for word in arguments if word != "-m"])
        for overrides in single_runs(words):
            compose(overrides, tree=tree)
        return
    command = arguments[0]
    if command not in COMMANDS:  # --help TOPIC
        assert call(*arguments).code == 0, arguments
        return
    runs_options = command in ("draw", "forecast")
    for word in arguments[1:]:
        key, equals, value = word.partition("=")
        known = key in help_of(command) or (runs_options and key in known_options())
        if equals or word.startswith("-"):
            assert known or key.startswith("dataset."), (word, arguments)
        if key == "dataset":
            names = {*card_names(), *known_sentence_cards(), *USER_LAYOUTS, "all"}
            assert set(value.split(",")) <= names, (word, arguments)


def test_every_fenced_block_is_known():
    """A block without a kind is output or a folder; another is a command, a file or Python."""
    for page in ALL_PAGES:
        text = page.read_text(encoding="utf-8")
        found = blocks(page)
        assert text.count("```") == 2 * len(found), page
        assert {block.kind for block in found} <= {
            "",
            "sh",
            "python",
            "json",
            "csv",
            "text",
            "yaml",
        }
        files = [block for block in found if block.kind not in ("", "sh", "python")]
        assert all(block.file for block in files), page


def test_the_readme_is_short_and_starts_with_two_commands():
    text = README.read_text(encoding="utf-8").splitlines()
    assert len(text) <= 100
    first = next(block for block in blocks(README) if block.kind == "sh")
    assert lines(first) == [["make", "demo"], ["make", "test"]]


def test_the_readme_leads_to_every_page():
    linked = {(ROOT / link).resolve() for link in links(README)}
    assert {page for page in PAGES if page not in linked} <= {ROOT / "docs" / "images.md"}


def test_every_command_of_the_readme_is_on_another_page():
    """The slow tests run it there."""
    elsewhere = [line for page in PAGES for line in all_lines(page)]
    for line in all_lines(README):
        assert line in elsewhere or line[:3] != PROGRAM or "--help" in line


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED, ids=[page.stem for page in FOLLOWED])
def test_the_commands_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch):
    write_class_folders(tmp_path / "photos", ("apple_tree", "oak", "scots_pine"), images=8)
    write_eurosat(tmp_path / "data")
    write(tmp_path / "data", files_of("parquet", rows(40), rows(8, start=100)))
    # Sampled tasks have five classes or more.
    write_dtd(tmp_path / "data", ("dotted", "fibrous", "grid", "lined", "woven"))
    monkeypatch.chdir(tmp_path)
    follow(page, tmp_path)


def test_the_results_version_in_the_pages_is_that_of_the_code():
    assert f"It is {RESULTS_VERSION} since" in (ROOT / "docs" / "runs.md").read_text()
