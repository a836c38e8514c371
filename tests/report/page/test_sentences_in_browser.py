"""The page of runs on sentences, alone and beside runs on images, in headless Chromium."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.report.write import write_report
from tests.helpers.page_runs import write_run
from tests.helpers.sentence_folders import write_sentence_grid

pytestmark = pytest.mark.slow
RUN = "rte-minilm-so-balanced-32shot-seed1-so-2e-05-0.001-5"


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "beside images"])
def report(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A report of runs on sentences, and whether it has runs on images too."""
    root = tmp_path_factory.mktemp("runs")
    write_sentence_grid(root)
    if request.param:
        for kappa in (5e-4, 5e-2):
            for interval in (0, 10):
                write_run(root, density_ratio=kappa, T=interval, shots=32)
    write_report(root, root / "report")
    return root / "report" / "index.html", request.param


@pytest.mark.parametrize("width", [1280, 390])
def test_a_run_shows_rows_and_no_empty_part(report, open_page, width):
    tab = open_page(report[0], f"run/{RUN}", width=width)
    text = tab.inner_text("#run")
    assert "SO · rte · 32 examples · seed 1" in text
    assert "48.6 to 60.3" in text  # of 151 right examples
    for absent in ("image", "zero-shot", "picture", "no run", "undefined", "NaN", "null"):
        assert absent not in text.lower(), absent
    parts = tab.locator("#run h3").all_inner_texts()
    assert parts == [
        "Training",
        "Training examples",
        "Most confident mistakes",
        "Confusion matrix",
        "Reliability",
        "Classes",
        "Configuration",
    ]
    assert tab.locator("#run li:has-text('not_entailment (16)')").count() == 1
    assert tab.locator("#run img").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_tables_and_filters_use_the_words_of_their_task(report, open_page):
    file, has_images = report
    tab = open_page(file, "tables?table=accuracy_minilm")
    assert tab.locator("#tables tr.block").first.inner_text() == "32 examples"
    assert "[48.6, 60.3]" in tab.inner_text("#tables")
    options = tab.locator("#of-shots option").all_inner_texts()
    words = "32 shots or 32 examples" if has_images else "32 examples"
    assert options == ["all", words]
    published = tab.locator("#tables tr.published")
    assert published.count() == 13
    assert "other model, bert-base-uncased" in published.first.inner_text()
    if has_images:
        tab.evaluate("location.hash = '#/tables?table=accuracy_tiny'")
        tab.locator("#tables tr.block:visible", has_text="32 shots").first.wait_for()
        assert "examples" not in tab.inner_text("#tables table.results")


def test_plots_of_both_tasks_can_be_chosen(report, open_page):
    file, has_images = report
    tab = open_page(file, "plots")
    title = "Accuracy over κ and T"
    plot = tab.locator("article.plot", has=tab.locator("h3", has_text=title))
    choices = plot.locator("option").all_inner_texts()
    assert choices == (["SO, tiny, 32 shots", "SO, minilm, 32 examples"] if has_images else [])
    assert "± 5.8 points" in plot.text_content()


def test_the_support_has_matrices_only(report):
    (file,) = (report[0].parent / "plots").glob("support_32example_minilm*.csv")
    numbers = pd.read_csv(file)
    assert set(numbers["kind"]) == {"query", "attention_out", "mlp_in", "mlp_out"}
    assert numbers["changed_percent"].max() < 2
