"""The manual names everything that can be chosen, with its default, and waits for no torch."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from so_clip.cli.help import TOPICS, manual, overview, shown
from so_clip.config.compose import compose
from so_clip.data.cards.card import card_names
from so_clip.errors import InputError
from so_clip.system.paths import CONF_DIR
from tests.helpers.command import call, python

TEXT = manual()
LINES = TEXT.splitlines()
CHOICES = sorted(
    (path.parent.relative_to(CONF_DIR).as_posix(), path.stem)
    for path in CONF_DIR.rglob("*.yaml")
    # What an experiment sets for one optimizer alone is chosen by both, never by itself.
    if path.parent != CONF_DIR and path.parent.name != "by_optimizer"
)
GROUPS = sorted({group for group, _ in CHOICES})
SHOWN = ("adapter/weights", "optimizer/so", "schedule/few_shot", "backbone/tiny")
TOP_LEVEL = [
    key
    for key, value in yaml.safe_load((CONF_DIR / "config.yaml").read_text()).items()
    if not isinstance(value, (dict, list))
]


def _section(group: str) -> str:
    """Return what stands below the heading of a group, up to the next."""
    return re.split(rf"(?m)^  {group}$", TEXT)[1].split("\n\n")[0]


def _entry(option: str) -> str:
    matches = [line for line in LINES if line.strip().startswith(f"{option}=")]
    assert len(matches) == 1, f"{option}: {matches}"
    return matches[0]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_is_listed_below_its_group_and_explained(group, choice):
    below = re.split(r"(?m)^  (?=\S)", _section(group))[0]
    assert re.search(rf"(?m)^    {choice} +\S", below), below


def test_every_dataset_is_listed():
    listed = re.split(r"(?m)^  (?=\S)", _section("dataset"))[0]
    cards, own = listed[: listed.index("csv ")], listed[listed.index("csv ") :]
    assert cards.split() == card_names()
    assert re.findall(r"(?m)^(?: {4})?(\w+) +Your own images", own) == ["csv", "folder"]


@pytest.mark.parametrize("option", TOP_LEVEL)
def test_every_top_level_option_is_listed_with_its_default(option):
    default = OmegaConf.to_container(compose([]), resolve=True)[option]
    shown = yaml.safe_dump(default).split()[0] if default in (None, False, True) else str(default)
    assert re.match(rf" +{option}={re.escape(shown)}( |$)", _entry(option))


@pytest.mark.parametrize("choice", SHOWN)
def test_every_option_of_the_default_choices_is_listed(choice):
    group = choice.partition("/")[0]
    options = yaml.safe_load((CONF_DIR / f"{choice}.yaml").read_text())
    for key in options:
        if not key.startswith("_"):
            _entry(f"{group}.{key}")


@pytest.mark.parametrize("group", ["augment", "evaluation"])
def test_every_option_of_the_other_groups_is_listed(group):
    for key in compose([])[group]:
        _entry(f"{group}.{key}")
    _entry("dataset.split_file")


def test_every_listed_option_exists_and_has_that_default():
    config, count = compose([]), 0
    for line in LINES:
        if chosen := re.match(r"  of (dataset=\w+)$", line):  # what follows is of that one alone
            config = compose([chosen[1]])
        match = re.match(r"    ([a-zA-Z_.]+)=(.*?)(  .*| [a-z].*)?$", line)
        if not match or match[2] == "[...]" or match[2].startswith("${"):
            continue
        count += 1
        default = OmegaConf.create(f"value: {match[2]}").value
        assert default == OmegaConf.select(config, match[1], throw_on_missing=True), line
    assert count > 40


def test_three_examples_and_the_other_commands_are_shown():
    examples = re.findall(r"(?m)^  python -m so_clip .*$", TEXT.split("groups (")[0])
    assert len(examples) == 3
    for example in examples:
        overrides = [word for word in example.split()[3:] if word != "-m"]
        single = [word.partition(",")[0].replace("~/", "") for word in overrides]
        compose(single)
    for word in (
        "so_clip prepare",
        "so_clip doctor",
        "so_clip draw",
        "so_clip table",
        "--debug",
        "--multirun",
        "exit codes",
    ):
        assert word in TEXT


def test_lines_are_short_and_clean():
    every = [*LINES, *overview().splitlines(), *shown(["optimizer=so", "--help"]).splitlines()]
    assert [line for line in every if len(line) > 100 or line != line.rstrip()] == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_a_screen_that_says_where_the_rest_is(flag):
    done = call("shots=0", flag)
    assert (done.code, done.out, done.err) == (0, f"{overview()}\n", "")
    assert len(done.out.splitlines()) <= 48
    assert len(TEXT.splitlines()) > 200
    for topic in ("GROUP", "options", "commands"):
        assert f"python -m so_clip --help {topic}" in done.out
    # What it names is there: choices, and every option with its default.
    for group, named in re.findall(r"(?m)^    (\w+) +(\w+ \| .*)$", done.out):
        for choice in re.findall(r"[a-z]\w*(?=$| \|)", named):
            if choice != "more":
                compose([f"{group}={choice}"])
    options = [line for line in done.out.splitlines() if re.match(r" +\w+=", line)]
    assert len(options) == 7
    assert set(options) <= set(LINES)


def test_a_topic_is_the_part_of_the_manual_that_it_names():
    assert call("--help", "all").out == f"{TEXT}\n"
    for topic in TOPICS[:-1]:
        part = call("--help", topic).out
        assert 2 < len(part.splitlines()) < len(LINES) / 2
        assert part in f"{TEXT}\n"
    assert call("--help=method").out == call("method", "--help").out


def test_a_choice_and_help_are_its_options():
    assert "dataset.split_seed=1 " in call("dataset=folder", "--help").out
    assert "optimizer.density_ratio=" in call("optimizer=so", "shots=4", "-h").out
    assert call("method=nonsense", "-h").out == f"{overview()}\n"


def test_an_unknown_topic_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"--help metod: there is no such topic\. Did you mean 'm"):
        shown(["--help", "metod"])
    assert call("--help", "metod").code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg=job"],
        ["dataset=eurosta"],
        ["shots=0"],
        ["shot=4"],
        ["dataset=eurosat", "data_root=/nowhere"],
        ["results_dir=/proc/runs"],
    ],
)
def test_help_and_refusals_do_not_wait_for_torch(arguments):
    code = (
        "import sys; sys.argv[0] = 'so_clip'\n"
        "from so_clip.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'open_clip' in sys.modules)"
    )
    assert python(code, *arguments).splitlines()[-1] == "False False"
