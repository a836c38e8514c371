"""The page as a file: self-contained, and safe for every text in a run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.errors import InputError
from so_clip.report.page import write as page
from so_clip.report.page.data import frame_data, script_json
from so_clip.report.plots.drawing import Plot
from so_clip.report.read import Runs, read_runs
from so_clip.report.tables import make_tables
from tests.helpers.page_runs import DIGITS, write_run

NASTY = '</script><script>alert("x")</script><!-- & \u2028 数 {{ 7*7 }}'


def _page(root: Path, **options) -> str:
    runs = read_runs(root)
    options["details"] = page.places_of(options.get("details", ()), runs)
    file = page.write(runs, make_tables(runs), root / "out", **options)
    return file.read_text(encoding="utf-8")


def _scripts(text: str) -> dict[str, str]:
    """Return the contents of JSON scripts by id or run."""
    name = r'(?:id="(\w+)"|class="details" data-run="(\d+)")'
    found = re.findall(rf'<script type="application/json" {name}>(.*?)</script>', text, re.DOTALL)
    return {name or run: content for name, run, content in found}


def _data(text: str) -> dict:
    return json.loads(_scripts(text)["data"])


def _value(column: dict, run: int):
    if "all" in column:
        return column["all"]
    return column["values"][run]


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_a_tiny_p_value_is_not_zero():
    pairs = pd.DataFrame({"p": [1.23456789e-9, 0.5, None], "n": [1, 2, 3]})
    table = frame_data("pairs", "Pairs", "How.", pairs)
    assert (table["name"], table["title"], table["caption"]) == ("pairs", "Pairs", "How.")
    assert table["columns"] == [{"title": "p", "digits": "e"}, {"title": "n", "digits": 0}]
    assert table["rows"] == [[1.23456789e-9, 1], [0.5, 2], [None, 3]]


def test_every_run_has_its_scores_and_settings(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed, accuracy_percent=80.0 + seed / 3, density_ratio=seed / 10)
    frame = read_runs(tmp_path).frame
    data = _data(_page(tmp_path))
    assert data["count"] == 3
    columns = {column["key"]: column for column in data["columns"]}
    for run, row in enumerate(frame.to_dict("records")):
        assert data["folder"][run] == Path(row["folder"]).name
        accuracy = _value(columns["accuracy_percent"], run)
        assert accuracy == row["accuracy_percent"]
        assert _value(columns["variant"], run) == row["variant"]
        settings = {key: _value(column, run) for key, column in data["settings"].items()}
        assert settings["optimizer.density_ratio"] == row["settings"]["optimizer"]["density_ratio"]
        assert settings["optimizer.lr"] == 0.002
        assert settings["backbone.checkpoint"] is None


def test_every_colour_is_defined_for_light_and_dark():
    css = (page.ASSETS / "page.css").read_text(encoding="utf-8")
    assert not re.findall(r"#[0-9a-f]{3,8}\b|\brgb\((?!var)", css)
    light, *dark = re.findall(r":root[^{]*\{([^}]*)\}", page.colours())
    assert dark[0] == dark[1]
    names = [set(re.findall(r"(--[\w-]+):", rules)) for rules in (light, dark[0])]
    assert names[0] == names[1] == set(re.findall(r"--[a-z-]+(?=:)", light))
    # Other variables are set by a rule or script.
    used = set(re.findall(r"var\((--[a-z-]+)", css))
    assert {name for name in used - names[0] if f"{name}:" not in css} <= {
        "--part",
        "--share",
        "--width",
    }


def test_the_page_has_no_outside_references(tmp_path):
    write_run(tmp_path)
    svg = '<svg viewBox="0 0 9 9"><path id="a"/></svg>'
    plot = Plot("p", "A plot", "Of something.", svg, svg)
    text = _page(tmp_path, plots=[plot])
    for tag, attributes in _Tags(text).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            own = tag == "a" and value in ("plots/p.svg", "plots/p.png", "plots/p.csv")
            assert value is None or own or value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    (policy,) = (
        attributes["content"]
        for tag, attributes in _Tags(text).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_no_text_becomes_markup(tmp_path):
    names = [NASTY, *DIGITS[1:]]
    write_run(tmp_path, title=NASTY, class_names=names, method="a", note=NASTY, folder="x<b>")
    plot = Plot("p", NASTY, NASTY, '<svg viewBox="0 0 9 9"></svg>', "<svg></svg>", NASTY)
    frames = [frame_data("n", NASTY, NASTY, pd.DataFrame({NASTY: [NASTY]}))]
    text = _page(tmp_path, plots=[plot], notes=[NASTY], frames=frames)
    tags = [tag for tag, _ in _Tags(text).tags]
    assert tags.count("script") == 4  # data, details, one run, the program
    data = _data(text)
    assert data["notes"] == [NASTY]
    assert data["frames"][0]["rows"] == [[NASTY]]
    assert data["tables"][0]["blocks"][-1]["rows"][0][1] == NASTY
    assert json.loads(_scripts(text)["details"])["names"][0][0] == [0, NASTY]
    assert "&lt;/script&gt;" in text  # the plot's title


def test_invalid_unicode_becomes_valid_json():
    text = script_json(["\udc80 </script>", 1.5, None])
    text.encode()
    assert "<" not in text
    assert json.loads(text) == ["\udc80 </script>", 1.5, None]


def test_a_value_that_a_run_lacks_is_null(tmp_path):
    folder = write_run(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["train_seconds"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_run(tmp_path, seed=2)
    columns = {column["key"]: column for column in _data(_page(tmp_path))["columns"]}
    assert [_value(columns["train_seconds"], run) for run in (0, 1)] == [None, 3]


def test_skipped_images_have_a_column_only_if_a_run_skipped_some(tmp_path):
    folder = write_run(tmp_path)
    for count, expected in ((0, None), (2, {"all": 2})):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics |= {"skipped_train_images": 0, "skipped_test_images": count}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        columns = {column["key"]: column for column in _data(_page(tmp_path))["columns"]}
        assert "skipped_train_images" not in columns
        found = columns.get("skipped_test_images")
        assert (found and {"all": found["all"]}) == expected


def test_the_best_and_the_newest_runs_have_details_first():
    rows = [
        ("dtd", 4, 50.0, "2026-01-01"),
        ("dtd", 4, 60.0, "2026-01-02"),
        ("eurosat", 4, 90.0, "2026-01-03"),
        ("eurosat", 4, 95.0, "2026-01-04"),
        ("dtd", 4, 10.0, "2026-01-09"),
        ("dtd", 4, 20.0, None),
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "shots", "accuracy_percent", "finished_at"])
    frame["backbone"] = "tiny"
    # Best of each dataset: 3, 1; then second ones: 2, 0; newest: 4, 3, 2, 1, 0.
    assert page.detail_order(frame) == [3, 4, 1, 2, 0, 5]
    assert page.detail_order(frame, [5])[:3] == [5, 3, 4]


def test_only_some_runs_have_details_and_wanted_ones_are_among_them(tmp_path, monkeypatch):
    for seed in range(1, 5):
        write_run(tmp_path, seed=seed, accuracy_percent=90.0 - seed, test_images=20)
    assert len(_scripts(_page(tmp_path))) == 2 + 4
    monkeypatch.setattr(page, "MAX_DETAILS", 2)
    text = _page(tmp_path, details=["digits-tiny-so-4shot-seed3"])
    kept = {int(name) for name in _scripts(text) if name.isdigit()}
    assert len(kept) == 2
    assert _data(text)["folder"].index("digits-tiny-so-4shot-seed3") in kept


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-tiny-so-4shot-seed9", "there is no finished run of that name"),
        ("twice", "several runs have that name: a/twice, b/twice"),
    ],
)
def test_an_unknown_or_ambiguous_name_is_refused(tmp_path, name, message):
    write_run(tmp_path)
    write_run(tmp_path / "a", folder="twice", seed=2)
    write_run(tmp_path / "b", folder="twice", seed=3)
    with pytest.raises(InputError, match=f"--details {name}: {message}"):
        page.places_of([name], read_runs(tmp_path))


def test_a_run_can_be_named_by_its_path(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / folder, folder="twice", seed=seed)
    names = ["b/twice", str(tmp_path / "b" / "twice"), str(tmp_path / "a" / "twice") + "/"]
    assert page.places_of(names, read_runs(tmp_path)) == [1, 1, 0]


def test_names_are_relative_to_the_results_folder(tmp_path):
    write_run(tmp_path / "deep" / "er")
    runs = read_runs(tmp_path)
    assert isinstance(runs, Runs)
    assert page.folder_names(runs) == ["deep/er/digits-tiny-so-4shot-seed1"]
