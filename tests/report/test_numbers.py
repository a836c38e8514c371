"""Every number that a report shows is the number of its CSV or of the run's files."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.report.page.data import COLUMNS
from so_clip.report.plots import write as plots
from so_clip.report.plots.svg import inline
from so_clip.report.read import read_runs
from so_clip.report.write import write_report
from so_clip.results.run_files import flat_options
from tests.helpers.svg_numbers import commented_texts, numbers, texts, wrong_numbers
from tests.helpers.varied_runs import write_varied_runs

pytestmark = pytest.mark.slow
# A cell: mean, deviation or uncertainty, number of runs.
_CELL = re.compile(r"(-?[\d,.]+)(?: ± ([\d,.]+))?(?: \((\d+)\))?")
# The measure whose CSV has the values of a cost column.
COSTS = {"peak_memory_mib": "memory", "train_seconds": "seconds", "train_tflops": "flops"}
COSTS_DIGITS = {"peak_memory_mib": 1, "train_seconds": 1, "train_tflops": 2}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of many kinds of runs, and that of their report."""
    root = tmp_path_factory.mktemp("runs")
    write_varied_runs(root)
    out = tmp_path_factory.mktemp("report")
    write_report(root, out)
    return root, out


def test_numbers_in_plots_are_those_of_their_csv(report, tmp_path):
    root, out = report
    drawn, _ = plots.write(read_runs(root).frame, tmp_path)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert len({plot.title for plot in drawn}) == len(plots.PLOTS)
    for plot in drawn:
        table = pd.read_csv(out / "plots" / f"{plot.name}.csv")
        for name, svg in ((plot.name, plot.svg), (f"{plot.name}-narrow", plot.narrow)):
            assert wrong_numbers(plot.name, svg, table) == [], name
            element = inline(svg, name, "")
            assert element.partition(">")[2] in page
            assert texts(element) == texts(svg)
        file = (out / "plots" / f"{plot.name}.svg").read_text(encoding="utf-8")
        assert commented_texts(file) == texts(plot.svg)


def test_a_changed_number_in_a_plot_is_found(report, tmp_path):
    root, out = report
    drawn, _ = plots.write(read_runs(root).frame, tmp_path)
    for plot in drawn:
        table = pd.read_csv(out / "plots" / f"{plot.name}.csv")
        for text in {text for text in texts(plot.svg) if numbers(text)}:
            other = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), text, count=1)
            svg = plot.svg.replace(f">{text}<", f">{other}<")
            assert wrong_numbers(plot.name, svg, table), (plot.name, text)


def _tables(tab: Any) -> list[dict[str, Any]]:
    """Return every table of the page: its name, the columns' keys and the rows' texts."""
    tab.evaluate("location.hash = '#/tables'")
    names = tab.eval_on_selector_all("#table option", "all => all.map(o => o.value)")
    found = []
    for name in names:
        tab.select_option("#table", name)
        found.append(tab.evaluate(
            """() => {
              const table = document.querySelector('#tables table.results');
              const keys = [...table.querySelectorAll('thead button')].map(b => b.dataset.key);
              const rows = [...table.tBodies].flatMap(body => {
                const [block, ...rest] = body.rows;
                const cells = (row) => [...row.cells].map(c => c.textContent);
                return rest.map(row => [block.textContent, ...cells(row)]);
              });
              return {keys: keys.slice(1), rows};
            }"""
        ) | {"name": name})  # fmt: skip
    return found


def _shots(block: str) -> int:
    return 0 if block == "zero-shot" else int(block.split()[0])


def _index(out: Path, measure: str) -> dict[tuple[Any, ...], Any]:
    table = pd.read_csv(out / "tables" / f"{measure}.csv", dtype={"variant": str, "source": str})
    table = table.fillna({"variant": "", "source": ""})
    return {
        (row.backbone, row.shots, row.method_title, row.variant, row.source, row.dataset): row
        for row in table.itertuples()
    }


def test_numbers_in_the_pages_tables_are_those_of_their_csv(report, open_page):
    _, out = report
    tab = open_page(out / "index.html")
    data = tab.evaluate("JSON.parse(document.getElementById('data').textContent)")
    tables = {table["name"]: table for table in data["tables"]}
    shown = 0
    for on_page in _tables(tab):
        table = tables[on_page["name"]]
        index = _index(out, table["measure"])
        named = [(block["shots"], *row[1:4]) for block in table["blocks"] for row in block["rows"]]
        used = set()
        digits = {column["key"]: column["digits"] for column in table["columns"]}
        for (block, _, *cells), (shots, title, variant, source) in zip(
            on_page["rows"], named, strict=True
        ):
            assert _shots(block) == shots
            for key, text in zip(on_page["keys"], cells, strict=True):
                row = (table["backbone"], shots, title, variant, source)
                if key in COSTS and key not in table["datasets"]:
                    _check_cost(out, table, key, row, text)
                    continue
                if text == "–":
                    assert (*row, key) not in index
                    continue
                used.add((*row, key))
                _check_cell(index[(*row, key)], text, digits[key])
                shown += 1
        assert used == {key for key in index if key[0] == table["backbone"]}
    assert shown > 100


def _check_cell(row: Any, text: str, digits: int) -> None:
    match = _CELL.fullmatch(text)
    assert match, text
    mean, spread, runs = match.groups()
    assert mean == f"{row.mean:,.{digits}f}"
    known = row.uncertainty if row.source else row.std
    assert spread == (None if pd.isna(known) else f"{known:,.{digits}f}")
    if runs is not None:
        assert int(runs) == row.runs


def _check_cost(out: Path, table: dict[str, Any], key: str, row: Any, text: str) -> None:
    index = _index(out, COSTS[key])
    datasets = table["datasets"]
    found = index.get((*row, "average" if len(datasets) > 1 else datasets[0]))
    if text != "–" and found is not None:
        assert text.split(" (")[0] == f"{found.mean:,.{COSTS_DIGITS[key]}f}"


@pytest.mark.parametrize("ending", ["md", "tex", "html"])
def test_the_other_formats_have_the_numbers_of_the_csv(report, ending):
    _, out = report
    costs = [pd.read_csv(out / "tables" / f"{name}.csv")["mean"] for name in COSTS.values()]
    for file in sorted((out / "tables").glob("*.csv")):
        if file.stem == "significance":
            continue
        means = pd.read_csv(file)["mean"]
        text = file.with_suffix(f".{ending}").read_text(encoding="utf-8")
        text = re.sub(r"\\textbf\{|</?strong>|\*\*", " ", text)
        # The first number of a cell.
        found = set(re.findall(r"(?:^|[|&>])\s*(-?\d+\.\d+)", text, re.MULTILINE))
        values = [value for column in (means, *costs) for value in column]
        assert found <= {f"{value:.{digits}f}" for value in values for digits in (1, 2)}
        for mean in means:  # a published value has the digits of its source
            assert found & {f"{mean:.1f}", f"{mean:.2f}"}, (file.name, mean)


def test_significance_has_the_numbers_of_its_csv(report, open_page):
    _, out = report
    tab = open_page(out / "index.html", "tables")
    rows = tab.evaluate(
        """() => {
          const box = [...document.querySelectorAll('#tables details')]
            .find(d => d.textContent.startsWith('Significance'));
          const cells = (row) => [...row.cells].map(c => c.textContent);
          return [...box.querySelectorAll('tbody tr')].map(cells);
        }"""
    )
    pairs = pd.read_csv(out / "tables" / "significance.csv")
    markdown = (out / "tables" / "significance.md").read_text(encoding="utf-8")
    in_file = [
        [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]
        for line in markdown.splitlines()
        if line.startswith("|")
    ][2:]
    assert [[cell.replace("\\", "") for cell in row] for row in rows] == in_file
    assert len(rows) > 5
    for backbone, shots, first, second, difference, seeds, p, p_holm, *images in rows:
        group = pairs[(pairs["backbone"] == backbone) & (pairs["shots"] == int(shots))
                      & (pairs["first"] == first) & (pairs["second"] == second)]  # fmt: skip
        over_seeds = group[group["test"] == "seeds"]
        average = over_seeds[over_seeds["dataset"] == "average"]
        row = (average if len(average) else over_seeds).head(1)
        for text, column in ((difference, "difference_points"), (seeds, "seeds"), (p, "p"),
                             (p_holm, "p_holm")):  # fmt: skip
            if text == "–":
                assert row[column].isna().all()
            else:
                step = 10.0 ** -len(text.partition("e")[0].partition(".")[2])
                scale = 10.0 ** int(text.partition("e")[2] or 0)
                assert abs(float(text) - float(row[column].iloc[0])) <= 0.51 * step * scale
        assert sum(map(int, images)) == (group["test"] == "images").sum()


def test_numbers_in_the_table_of_runs_are_those_of_metrics_json(report, open_page):
    root, out = report
    tab = open_page(out / "index.html", "runs")
    digits = {key: number for key, _, number in COLUMNS}
    rows = tab.evaluate(
        """() => {
          const table = document.querySelector('#runs table');
          const keys = [...table.querySelectorAll('thead button')].map(b => b.dataset.key);
          return [...table.tBodies[0].rows].map(row => ({
            folder: decodeURIComponent(row.querySelector('a').hash.slice('#/run/'.length)),
            ...Object.fromEntries([...row.cells].map((cell, at) => [keys[at], cell.textContent])),
          }));
        }"""
    )
    assert len(rows) == len(read_runs(root).frame)
    checked = set()
    for row in rows:
        metrics = json.loads((root / row["folder"] / "metrics.json").read_text())
        if "train_flops" in metrics:
            metrics["train_tflops"] = metrics["train_flops"] / 1e12
        for key, text in row.items():
            if digits.get(key) is None or key not in digits:
                continue
            value = metrics.get(key)
            assert text == ("–" if value is None else f"{value:,.{digits[key]}f}"), (row, key)
            checked.add(key)
    assert len(checked) > 10


@pytest.mark.parametrize("run", ["digits-tiny-so-1shot-seed2", "oxford_pets-tiny-so-4shot-seed1"])
def test_numbers_on_a_runs_page_are_those_of_its_files(report, open_page, run):
    root, out = report
    tab = open_page(out / "index.html", f"run/{run}")
    folder = root / run
    predictions = pd.read_csv(folder / "predictions.csv")
    classes = pd.read_csv(folder / "per_class.csv")
    _check_confusion(tab, predictions, classes)
    _check_reliability(tab, predictions)
    rows = _grid(tab, "Accuracy by class")
    assert len(rows) == len(classes)
    for row, (_, wanted) in zip(rows, classes.iterrows(), strict=True):
        before, after = wanted["zero_shot_accuracy_percent"], wanted["accuracy_percent"]
        change = after - before
        texts = ["–" if pd.isna(value) else f"{value:.1f}" for value in (before, after)]
        signed = "–" if pd.isna(change) else f"{'−' if change < 0 else '+'}{abs(change):.1f}"
        name = [wanted["name"], str(wanted["label"]), str(wanted["images"])]
        assert row == [*name, *texts, signed]
    mistakes = tab.locator(".gallery li").all_inner_texts()
    by_path = predictions.set_index("path")
    for text in mistakes:
        path = text.splitlines()[-1]
        assert f"{100 * by_path.loc[path, 'confidence']:.1f}\u00a0%" in text
    settings = flat_options(json.loads((folder / "config.yaml").read_text()))
    for name, value in _grid(tab, "Settings of the run"):
        assert json.dumps(settings[name]).strip('"') == value or settings[name] == float(value)
    _check_charts(tab, folder)


def _grid(tab: Any, caption: str) -> list[list[str]]:
    """Return the texts of all rows of a table."""
    return tab.evaluate(
        """caption => {
          const table = [...document.querySelectorAll('#run table')]
            .find(t => t.caption.textContent === caption);
          return [...table.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent));
        }""",
        caption,
    )


def _check_confusion(tab: Any, predictions: pd.DataFrame, classes: pd.DataFrame) -> None:
    names = classes["name"]
    counts = pd.crosstab(predictions["label"], predictions["prediction"])
    counts = counts.reindex(index=classes["label"], columns=classes["label"], fill_value=0)
    if len(names) <= 30:
        rows = tab.evaluate(
            """() => [...document.querySelectorAll('table.confusion tbody tr')]
              .map(r => [...r.cells].slice(1).map(c => Number(c.textContent)))"""
        )
        assert rows == counts.to_numpy().tolist()
        return
    for first, second, images, share in _grid(tab, "Most frequent confusions"):
        label, prediction = names[names == first].index[0], names[names == second].index[0]
        assert int(images) == counts.loc[label, prediction]
        assert share == f"{100 * int(images) / counts.loc[label].sum():.1f}"
    assert tab.locator("canvas.confusion").get_attribute("width") == str(len(names))


def _check_reliability(tab: Any, predictions: pd.DataFrame) -> None:
    bins = 15
    place = (
        np.clip(np.ceil(predictions[["confidence", "zero_shot_confidence"]] * bins), 1, bins) - 1
    )
    for number, row in enumerate(_grid(tab, "Reliability by confidence")):
        wanted = []
        for prefix in ("", "zero_shot_"):
            group = predictions[place[f"{prefix}confidence"] == number]
            right = 100 * (group["label"] == group[f"{prefix}prediction"]).mean()
            confidence = 100 * group[f"{prefix}confidence"].mean()
            shares = ["–" if pd.isna(value) else f"{value:.1f}" for value in (right, confidence)]
            wanted += [str(len(group)), *shares]
        assert row[1:] == wanted


def _check_charts(tab: Any, folder: Path) -> None:
    """Read the drawn curves by their ticks and compare them with the run's files."""
    charts = tab.evaluate(
        """() => [...document.querySelectorAll('.side svg.chart')].map(chart => {
          const ticks = [...chart.querySelectorAll('text.tick')].map(t => ({
            value: Number(t.textContent.replaceAll(',', '')), x: Number(t.getAttribute('x')),
            y: Number(t.getAttribute('y')), isX: t.getAttribute('text-anchor') === 'middle'}));
          const points = chart.querySelector('.curve').getAttribute('d').slice(1).split('L')
            .map(pair => pair.split(' ').map(Number));
          const titles = [...chart.querySelectorAll('title')].map(t => t.textContent);
          return {ticks, points, titles};
        })"""
    )
    losses = pd.read_csv(folder / "history.csv")
    window = max(1, round(0.05 * len(losses)))
    smooth = losses["loss"].rolling(window, center=True, min_periods=1).mean()
    curve = pd.read_csv(folder / "curve.csv")
    curves = (losses["step"], smooth), (curve["step"], curve["accuracy_percent"])
    for chart, (steps, values) in zip(charts, curves, strict=True):
        wanted = dict(zip(steps.tolist(), values.tolist(), strict=True))
        for axis, shift in (("x", 0), ("y", -4)):
            ticks = [tick for tick in chart["ticks"] if tick["isX"] == (axis == "x")]
            assert len(ticks) >= 2
            a, b = np.polyfit([t[axis] + shift for t in ticks], [t["value"] for t in ticks], 1)
            read = [a * (t[axis] + shift) + b for t in ticks]
            assert np.allclose(read, [t["value"] for t in ticks], atol=1e-6 * max(map(abs, read)))
            chart[axis] = (a, b)
        assert all(float(t["value"]).is_integer() for t in chart["ticks"] if t["isX"])
        span = np.ptp(list(wanted.values())) or 1
        for x, y in chart["points"]:
            step = chart["x"][0] * x + chart["x"][1]
            nearest = min(wanted, key=lambda known: abs(known - step))
            assert abs(nearest - step) <= 0.01 * max(wanted)
            assert abs(chart["y"][0] * y + chart["y"][1] - wanted[nearest]) < 0.02 * span + 1e-3
        for title in chart["titles"]:
            step, value = re.fullmatch(r"step ([\d,]+): ([\d.]+)", title).groups()
            digits = len(value.partition(".")[2])
            assert value == f"{wanted[int(step.replace(',', ''))]:.{digits}f}"
