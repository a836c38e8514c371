"""The manual names all choices and options with their defaults, and imports no torch."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from so_clip.cli.help import IMAGES, ON_SENTENCES, manual, overview, shown
from so_clip.config.compose import compose
from so_clip.config.kinds import kind_of_file
from so_clip.config.trees import SENTENCES
from so_clip.data.cards.card import card_names
from so_clip.data.sentences.card import known_sentence_cards
from so_clip.errors import InputError
from so_clip.system.paths import CONF_DIR
from tests.helpers.command import call, python

TEXT = manual()
LINES = TEXT.splitlines()
CHOICES = sorted(
    (path.parent.relative_to(CONF_DIR).as_posix(), path.stem)
    for path in CONF_DIR.rglob("*.yaml")
    # Files in by_optimizer are never chosen by name, and those in meta not by runs.
    if path.parent != CONF_DIR
    and path.parent.name != "by_optimizer"
    and path.relative_to(CONF_DIR).parts[0] != "meta"
    and kind_of_file(path) is not SENTENCES
)
SHOWN = ("adapter/weights", "optimizer/so", "schedule/few_shot", "backbone/tiny")
TOP_LEVEL = [
    key
    for key, value in yaml.safe_load((CONF_DIR / "config.yaml").read_text()).items()
    if not isinstance(value, (dict, list))
]


def _section(group: str) -> str:
    """Return the text below a group's heading."""
    return re.split(rf"(?m)^  {group}$", TEXT)[1].split("\n\n")[0]


def _entry(option: str) -> str:
    matches = [line for line in LINES if line.strip().startswith(f"{option}=")]
    assert len(matches) == 1, f"{option}: {matches}"
    return matches[0]


def test_every_choice_is_listed_in_its_group_and_explained():
    for group, choice in CHOICES:
        below = re.split(r"(?m)^  (?=\S)", _section(group))[0]
        assert re.search(rf"(?m)^    {choice} +\S", below), (group, choice)


def test_every_dataset_is_listed():
    listed = re.split(r"(?m)^  (?=\S)", _section("dataset"))[0]
    cards, own = listed[: listed.index("csv ")], listed[listed.index("csv ") :]
    assert cards.split() == card_names()
    assert re.findall(r"(?m)^(?: {4})?(\w+) +Your own images", own) == ["csv", "folder"]


def test_every_top_level_option_is_listed_with_its_default():
    config = OmegaConf.to_container(compose([]), resolve=True)
    for option in TOP_LEVEL:
        value = config[option]
        shown = yaml.safe_dump(value).split()[0] if value in (None, False, True) else str(value)
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
        if chosen := re.match(r"  of (dataset=\w+)$", line):  # the options below are only its own
            config = compose([chosen[1]])
        match = re.match(r"    ([a-zA-Z_.]+)=(.*?)(  .*| [a-z].*)?$", line)
        if not match or match[2] == "[...]" or match[2].startswith("${"):
            continue
        count += 1
        default = OmegaConf.create(f"value: {match[2]}").value
        assert default == OmegaConf.select(config, match[1], throw_on_missing=True), line
    assert count > 40


def test_the_three_examples_compose():
    examples = re.findall(r"(?m)^  python -m so_clip .*$", TEXT.split("groups (")[0])
    assert len(examples) == 3
    for example in examples:
        overrides = [word for word in example.split()[3:] if word != "-m"]
        compose([word.partition(",")[0] for word in overrides])


def test_lines_are_short_and_clean():
    lines = [*LINES, *overview().splitlines(), *shown(["optimizer=so", "--help"]).splitlines()]
    lines += [*manual(ON_SENTENCES).splitlines(), *overview(ON_SENTENCES).splitlines()]
    assert [line for line in lines if len(line) > 100 or line != line.rstrip()] == []


def test_help_fits_a_screen_and_names_its_topics():
    done = call("shots=0", "--help")
    assert (done.code, done.out, done.err) == (0, f"{overview()}\n", "")
    assert call("-h", "shots=0") == done
    assert len(done.out.splitlines()) <= 48
    assert len(TEXT.splitlines()) > 200
    for topic in ("GROUP", "options", "commands"):
        assert f"python -m so_clip --help {topic}" in done.out
    # The choices and options on it exist.
    for group, named in re.findall(r"(?m)^    (\w+) +(\w+ \| .*)$", done.out):
        for choice in re.findall(r"[a-z]\w*(?=$| \|)", named):
            if choice != "more":
                assert (group, choice) in CHOICES or choice in card_names()
    options = [line for line in done.out.splitlines() if re.match(r" +\w+=", line)]
    assert len(options) == 7
    assert set(options) <= set(LINES)


def test_a_topic_is_a_part_of_the_manual():
    assert call("--help", "all").out == f"{TEXT}\n"
    for topic in IMAGES.topics[:-1]:
        part = call("--help", topic).out
        assert 2 < len(part.splitlines()) < len(LINES) / 2
        assert part in f"{TEXT}\n"
    assert call("--help=method").out == call("method", "--help").out


def test_a_choice_with_help_prints_its_options():
    assert "dataset.split_seed=1 " in call("dataset=folder", "--help").out
    assert "optimizer.density_ratio=" in call("optimizer=so", "shots=4", "-h").out
    refused = call("method=adamww", "-h")
    assert (refused.code, refused.out) == (2, "")
    assert "there is no method of that name. Did you mean 'adamw'" in refused.err
    assert call("dataset=dtd", "shots=nonsense", "-h").out == f"{overview()}\n"


def test_an_unknown_topic_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"--help metod: there is no such topic\. Did you mean 'm"):
        shown(["--help", "metod"])
    assert call("--help", "metod").code == 2


def test_help_and_refusals_need_no_torch():
    lines = (
        "--help",
        "--cfg=job",
        "dataset=eurosta",
        "shots=0",
        "shot=4",
        "results_dir=/proc/runs",
    )
    code = (
        "import sys\n"
        "from so_clip.__main__ import main\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['so_clip', *line.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "print('torch' in sys.modules, 'open_clip' in sys.modules)"
    )
    lines = (*lines, "dataset=eurosat data_root=/nowhere")
    assert python(code, *lines).splitlines()[-1] == "False False"


def test_the_first_word_opens_the_manual_of_sentences():
    done = call("rte", "--help")
    assert (done.code, done.out, done.err) == (0, f"{overview(ON_SENTENCES)}\n", "")
    assert call("sentences", "-h") == call("--help", "cola") == done
    assert len(done.out.splitlines()) <= 50
    assert call("rte", "--help", "dataset").out.split() == ["dataset", *known_sentence_cards()]
    assert "model.source=null" in call("rte", "model=folder", "--help").out
    refused = call("rte", "--help", "backbone")
    assert (refused.code, refused.out) == (2, "")
    assert "there is no such topic" in refused.err


def test_the_manual_of_sentences_lists_what_fits_them_with_its_defaults():
    methods = call("rte", "--help", "method").out
    for method, is_listed in {"so": 1, "lora": 1, "head": 1, "coop": 0, "zero_shot": 0}.items():
        assert bool(re.search(rf"(?m)^    {method} +\S", methods)) == is_listed
    assert not re.search(r"(?m)^    head +\S", call("--help", "method").out)
    config = compose([], tree=SENTENCES)
    listed = call("rte", "--help", "options").out
    pairs = re.findall(r"(?m)^    ([a-z][\w.]+)=(\S+)", listed)
    assert {name for name, _ in pairs} >= {*ON_SENTENCES.declared()}
    for name, value in pairs:
        if not value.startswith(("${", "[")):
            default = OmegaConf.create(f"value: {value}").value
            assert default == OmegaConf.select(config, name, throw_on_missing=True), name
