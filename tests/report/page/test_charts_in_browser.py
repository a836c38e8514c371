"""Confusion matrices and curves in headless Chromium: they fit the page, and steps are whole."""

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.report.page import write as page
from so_clip.report.plots import write as plots
from so_clip.report.read import read_runs
from so_clip.report.tables import make_tables
from tests.helpers.browser import overflows
from tests.helpers.page_runs import write_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("classes", [2, 30, 31, 1000])
def test_a_confusion_matrix_fits_its_page(tmp_path, open_page, width, classes):
    names = [f"a class with the long name {number}" for number in range(classes)]
    write_run(tmp_path, class_names=names, test_images=4 * classes, folder="run")
    runs = read_runs(tmp_path)
    tab = open_page(page.write(runs, make_tables(runs), tmp_path / "out"), "run/run", width=width)
    box = tab.locator(".matrix")
    bounds = box.bounding_box()
    assert bounds["x"] >= 0
    assert bounds["x"] + bounds["width"] <= width
    assert bounds["height"] <= 900
    assert not overflows(tab)
    if classes <= 30:
        cells = tab.locator("table.confusion tbody td")
        assert cells.count() == classes**2
        assert cells.last.bounding_box()["width"] < 220
        return
    canvas = tab.locator("canvas.confusion")
    assert canvas.get_attribute("width") == str(classes)
    assert canvas.bounding_box()["width"] / classes >= 4
    canvas.hover(position={"x": 13, "y": 13})  # the box has round corners
    name = names[int(13 * classes / canvas.bounding_box()["width"])]
    assert tab.locator(".reading").inner_text().startswith(f"{name} predicted as {name}: ")
    tab.locator("#run .choice select").select_option("0")
    assert canvas.bounding_box()["width"] <= bounds["width"]


def test_step_axes_have_whole_numbers(tmp_path, open_page):
    for steps in (1, 3):
        write_run(tmp_path, steps=steps, seed=steps, folder=f"run{steps}", test_images=20)
    runs = read_runs(tmp_path)
    drawn, _ = plots.write(runs.frame, tmp_path / "out")
    file = page.write(runs, make_tables(runs), tmp_path / "out", drawn)
    for steps in (1, 3):
        tab = open_page(file, f"run/run{steps}")
        ticks = tab.locator(
            "svg.chart >> nth=0 >> text.tick[text-anchor=middle]"
        ).all_text_contents()
        assert ticks
        assert all(tick.isdigit() for tick in ticks), ticks
