"""The fence `facts`: defaults and costs of a method, from conf/ and from tables of commands."""

import csv
import html
import re

import pytest
import yaml
from omegaconf import OmegaConf

from scripts.docs_site import method_facts
from scripts.docs_site.fences import FenceError
from scripts.docs_site.method_facts import COSTS, DIGITS, chosen, facts, meaning, remarks
from so_clip.system.paths import CONF_DIR

METHODS = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))


def shown(method, part=None):
    source = f"method: {method}\n" + (f"part: {part}\n" if part else "")
    return facts(source, "facts", "facts", {}, None)


def text_of(made):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", made)))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_facts(method):
    made = shown(method)
    assert '<div class="facts">' in made
    assert "schedule.max_steps" in made
    assert "${" not in made  # every value is resolved


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("method", METHODS)
def test_the_chosen_parts_are_those_of_the_configuration(method):
    config = method_facts._composed(method)
    parts = chosen(method)
    named = yaml.safe_load((CONF_DIR / "adapter" / f"{parts['adapter']}.yaml").read_text())
    assert config.adapter.name == named.get("name", config.adapter.name)
    file = OmegaConf.load(CONF_DIR / "schedule" / f"{parts['schedule']}.yaml")
    raw = OmegaConf.to_container(file)
    own = {key: raw[key] for key in raw if key != "defaults" and "$" not in str(raw[key])}
    assert own == {name: config.schedule[name] for name in own}


def test_defaults_of_the_paper_and_of_the_released_code_differ():
    paper, code = text_of(shown("so", "defaults")), text_of(shown("so_official", "defaults"))
    assert "optimizer.density_ratio 0.0005" in paper
    assert "optimizer.order prune_first" in paper
    assert "schedule.max_steps 2000 steps" in paper
    assert "optimizer.density_ratio 5e-05" in code
    assert "optimizer.order update_first" in code
    assert "schedule.max_steps 8000 * steps" in code


def test_a_method_for_sentences_has_the_schedule_of_sentences():
    made = text_of(shown("head", "defaults"))
    assert "schedule.max_steps 10000" in made
    assert "rte method=head" in made


def test_a_comment_is_found_in_a_file_below():
    assert meaning("adapter", "dora", "rank") == meaning("adapter", "lora", "rank") != ""
    assert meaning("optimizer", "so_age", "T") == meaning("optimizer", "so", "T") != ""


@pytest.mark.parametrize("method", METHODS)
def test_remarks_are_those_of_the_files(method):
    files = [
        CONF_DIR / "method" / f"{method}.yaml",
        CONF_DIR / "schedule" / f"{chosen(method)['schedule']}.yaml",
    ]
    expected = sum("Different:" in file.read_text(encoding="utf-8") for file in files)
    assert len(remarks(method)) == expected
    assert all(remark in text_of(shown(method, "defaults")) for remark in remarks(method))


def test_a_remark_of_several_lines_is_whole():
    (remark,) = remarks("prototypes")
    assert remark == "SMAT's code averages the features before they are made unit-length."
    assert remarks("clap")[0].endswith("before these are made unit-length.")


def test_costs_are_the_means_of_the_table():
    with DIGITS.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["method"] == "lora"]
    peaks = [float(row["peak_memory_mib"]) for row in rows if row["shots"] == "4"]
    made = text_of(shown("lora", "cost"))
    assert len(peaks) == 3
    assert f"Peak memory {sum(peaks) / 3:,.1f} MiB" in made
    assert "mean over 3 seeds" in made
    assert "python scripts/digits_tables.py" in made


def test_the_forecast_is_that_of_its_table():
    with COSTS.open(newline="") as opened:
        (row,) = [row for row in csv.DictReader(opened) if row["method"] == "adamw"]
    made = text_of(shown("adamw", "cost"))
    assert "Forecast, not measured" in made
    assert f"Trained parameters {int(row['trained_parameters']):,}" in made
    assert row["command"] in made


def test_a_method_without_a_row_says_so():
    made = text_of(shown("head", "cost"))
    assert "On the digits: not measured: results/tables/digits_methods.csv has no row" in made
    assert "not forecast: results/tables/method_costs.csv has no row" in made
    assert "MiB" not in made


def test_a_method_that_a_forecast_refuses_says_why():
    assert "not forecast: method=smat starts from a meta-trained checkpoint" in text_of(
        shown("smat", "cost")
    )


@pytest.mark.parametrize(
    "source",
    [
        "method: lore",
        "part: cost",
        "method: so\nparts: cost",
        "method: so\npart: speed",
        "so",
        "a: [",
    ],
)
def test_a_wrong_fence_fails(source):
    with pytest.raises(FenceError, match=r"^facts: "):
        facts(source, "facts", "facts", {}, None)
