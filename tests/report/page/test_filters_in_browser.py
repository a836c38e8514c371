"""The page in headless Chromium: sorting, filters, search, and the address that keeps them."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.browser import column

pytestmark = pytest.mark.slow


def test_a_click_on_a_heading_sorts_the_runs(page_file, open_page):
    tab = open_page(page_file, "runs")
    heading = tab.locator("#runs th:has(button[data-key=accuracy_percent])")
    assert heading.get_attribute("aria-sort") == "descending"
    found = [float(text) for text in column(tab, "#runs", 2)]
    assert found == sorted(found, reverse=True)
    assert len(found) == 34
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(tab, "#runs", 2)] == sorted(found)
    tab.click("#runs button[data-key=dataset]")
    assert heading.get_attribute("aria-sort") is None
    datasets = column(tab, "#runs", 3)
    assert datasets == sorted(datasets)


def test_tables_sort_within_blocks_and_filter(page_file, open_page):
    tab = open_page(page_file, "tables")
    tab.click("#tables table.results button[data-key=digits]")
    block = tab.locator("#tables tbody", has_text="16 shots")
    assert [text.split()[0] for text in block.locator("tr:not(.block) th").all_inner_texts()] == [
        "CLIP-LoRA",
        "SO",
        "AdamW",
    ]
    assert "91.00 ± 1.00" in block.locator("tr:nth-child(2)").inner_text()
    assert block.locator("strong").first.inner_text() == "91.00"
    tab.select_option("#of-shots", "4")
    assert tab.locator("#tables tr.block").all_inner_texts() == ["4 shots"]
    tab.select_option("#of-method", "SO")
    assert tab.locator("#tables .results tbody tr:not(.block)").count() == 1
    assert tab.locator("#tables .results th", has_text="Pets").count() == 1
    tab.select_option("#of-dataset", "digits")
    assert tab.locator("#tables .results th", has_text="Pets").count() == 0
    tab.click("#clear")
    assert tab.locator("#tables tr.block").count() == 4
    tab.select_option("#table", label="Peak memory in MiB, tiny")
    assert "Peak memory" in tab.locator("#tables .results caption").inner_text()
    assert "Left out: some folder." in tab.locator("#tables").inner_text()
    further = tab.locator("#tables details", has_text="Significance")
    further.locator("summary").click()
    assert "A p below 0.05 says much." in further.locator("p.hint:visible").inner_text()


def test_runs_filter_by_words_and_choices(page_file, open_page):
    tab = open_page(page_file, "runs")
    status = tab.locator("#runs [role=status]")
    assert status.inner_text() == "34 runs"
    tab.fill("#words", "LORA seed2")
    assert status.inner_text() == "3 runs"
    tab.select_option("#of-shots", "4")
    assert status.inner_text() == "1 run"
    tab.select_option("#of-dataset", "oxford_pets")
    assert status.inner_text() == "No run passes the filters."
    tab.click("#clear")
    assert status.inner_text() == "34 runs"
    assert tab.input_value("#words") == ""


def _settled(tab: Any) -> str:
    return tab.evaluate("location.hash")


def test_the_address_keeps_the_filters_and_back_restores_them(page_file, open_page):
    tab = open_page(page_file, "runs")
    status = tab.locator("#runs [role=status]")
    tab.select_option("#of-method", "SO")
    tab.fill("#words", "seed2")
    tab.select_option("#of-shots", "16")
    tab.click("#runs button[data-key=dataset]")
    assert _settled(tab) == "#/runs?method=SO&q=seed2&shots=16&sort=dataset"
    assert status.inner_text() == "1 run"
    tab.go_back()
    tab.go_back()
    assert tab.input_value("#of-shots") == ""
    assert status.inner_text() == "3 runs"
    tab.go_back()
    assert (tab.input_value("#of-method"), tab.input_value("#words")) == ("", "")
    assert status.inner_text() == "34 runs"
    tab.go_forward()
    assert tab.input_value("#of-method") == "SO"
    tab.click("nav a[href^='#/tables']")
    assert _settled(tab) == "#/tables?method=SO&q=seed2"
    shared = open_page(page_file, "tables?shots=4&table=memory_tiny&sort=-digits")
    assert shared.input_value("#table") == "memory_tiny"
    assert shared.locator("#tables tr.block").all_inner_texts() == ["4 shots"]
    heading = shared.locator("#tables th:has(button[data-key=digits])")
    assert heading.get_attribute("aria-sort") == "descending"
    assert open_page(page_file, "runs?dataset=nowhere").input_value("#of-dataset") == ""


def test_a_runs_page_leads_back_to_the_same_filters(page_file, open_page):
    tab = open_page(page_file, "runs?q=lora&shots=16")
    tab.click("#runs tbody a >> nth=0")
    tab.wait_for_selector("#run h2")
    tab.click("#run .crumbs a")
    assert tab.locator("#runs [role=status]").inner_text() == "3 runs"
    assert tab.input_value("#words") == "lora"


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("seed=2", 9),
        ("16", 9),
        ("16 seed=2", 3),
        ("shots=16 clip", 3),
        ("kappa=0.05", 2),
        ("density_ratio=5e-4 T=10", 1),
        ("optimizer.density_ratio=", 4),
        ("0.05", 2),
        ("seed=22", 0),
        ("1", 21),
        ("(", 9),
    ],
)
def test_the_search_finds_settings_and_whole_numbers(page_file, open_page, words, runs):
    tab = open_page(page_file, f"runs?q={quote(words)}")
    shown = tab.locator("#runs tbody tr").count()
    assert shown == runs, tab.locator("#runs tbody tr").all_inner_texts()


def test_the_search_finds_rows_of_tables_by_their_runs(page_file, open_page):
    tab = open_page(page_file, "tables?q=seed%3D2+16")
    assert tab.locator("#tables tr.block").all_inner_texts() == ["16 shots"]
    assert tab.locator("#tables .results tbody tr:not(.block)").count() == 3
