"""A page with 20,000 runs stays usable. scripts/bench_report.py measures the time."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.report.page import write as page
from so_clip.report.read import Runs, read_runs
from so_clip.report.tables import make_tables
from tests.helpers.page_runs import write_run
from tests.helpers.report_runs import PAPER

pytestmark = pytest.mark.slow
COUNT = 20_000
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
# Runs with files: more than the page shows details of.
WRITTEN = 260


def _runs(root: Path) -> Runs:
    """Return 20,000 runs of 122 methods; the first in the page's order have files."""
    write_run(root, density_ratio=5e-4, T=10, betas=[0.9, 0.999], backbone="ViT-B-16")
    (pattern,) = read_runs(root).frame.to_dict("records")
    rows: list[dict[str, Any]] = []
    for number in range(COUNT):
        method, rest = divmod(number, len(PAPER) * len(SHOTS) * len(SEEDS))
        rest, seed = divmod(rest, len(SEEDS))
        dataset, shots = (names[place] for names, place in zip(
            (PAPER, SHOTS), divmod(rest, len(SHOTS)), strict=True))  # fmt: skip
        cell = {"dataset": dataset, "shots": shots, "seed": SEEDS[seed], "method": f"m{method}"}
        name = f"{dataset}-vit-b-16-method{method}-{shots}shot-seed{SEEDS[seed]}-{number:012x}"
        rows.append(
            {
                **pattern,
                **cell,
                "method_title": f"Method {method}",
                "settings": pattern["settings"] | cell | {"threads": number % 7},
                "folder": str(root / name),
                "accuracy_percent": 40 + number * 7919 % COUNT / 400,
                "train_seconds": number * 104729 % COUNT / 10,
                "peak_memory_mib": 900 + number * 1299709 % COUNT / 10,
                "finished_at": f"2026-11-{1 + number % 28:02d}T12:00:{number % 60:02d}+00:00",
            }
        )
    frame = pd.DataFrame(rows)
    names = [f"a class with a name, number {number}" for number in range(100)]
    for place in page.detail_order(frame)[:WRITTEN]:
        run = frame.iloc[place]
        write_run(root, folder=Path(run["folder"]).name, class_names=names, test_images=2000,
                  dataset=run["dataset"])  # fmt: skip
    return Runs(root, frame, [])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all these runs."""
    root = tmp_path_factory.mktemp("runs")
    runs = _runs(root)
    return page.write(runs, make_tables(runs), tmp_path_factory.mktemp("out"))


def test_a_limited_number_of_runs_has_details(file):
    text = file.read_text(encoding="utf-8")
    assert text.count('class="details" data-run=') == page.MAX_DETAILS


def test_the_table_of_runs_filters_sorts_and_pages(file, open_page):
    tab = open_page(file, "runs")
    status = tab.locator("#runs [role=status]")
    assert status.inner_text() == "1 to 100 of 20,000 runs"
    assert tab.locator("#runs tbody tr").count() == 100
    for do, expected in (
        (lambda: tab.fill("#words", "method12- dtd 16shot"), "3 runs"),
        (lambda: tab.click("#clear"), "1 to 100 of 20,000 runs"),
        (lambda: tab.click("#runs button[data-key=train_seconds]"), "1 to 100 of 20,000 runs"),
        (lambda: tab.click("text=Last"), "19,901 to 20,000 of 20,000 runs"),
    ):
        do()
        assert status.inner_text() == expected
    assert tab.locator("#runs th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_a_run_without_details_shows_the_command_for_them(file, open_page):
    tab = open_page(file, "runs")
    assert "250 of 20,000 runs have their confusion matrix" in tab.locator("#runs").inner_text()
    tab.check("#runs input[type=checkbox]")
    assert tab.locator("#runs [role=status]").inner_text() == "1 to 100 of 250 runs"
    tab.click("#runs tbody a")
    assert tab.locator("#run h3").first.inner_text() == "Training"
    tab.evaluate(
        """location.hash = '#/run/' + data_without()
        function data_without() {
          const data = JSON.parse(document.getElementById('data').textContent);
          const all = [...document.querySelectorAll('script.details')];
          const there = new Set(all.map((script) => script.dataset.run));
          return data.folder.find((_, run) => !there.has(String(run)));
        }"""
    )
    tab.wait_for_selector("#run .note")
    note = tab.locator("#run .note").inner_text()
    assert "python -m so_clip report" in note
    assert "--details" in note
    assert "optimizer.betas\t[0.9, 0.999]" in tab.locator("#run").inner_text()
