"""The page in headless Chromium: it loads, sorts, filters, opens runs and works by keyboard."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.report.page import write as page
from so_clip.report.page.data import frame_data
from so_clip.report.plots import write as plots
from so_clip.report.read import read_runs
from so_clip.report.tables import make_tables
from tests.helpers.page_runs import DIGITS, write_run

pytestmark = pytest.mark.slow
NASTY = '</script><b id="nasty">x</b>'
VIEWS = ("tables", "plots", "runs", "run/digits-tiny-so-4shot-seed1")
METHODS = (("so", "SO", 80.0), ("adamw", "AdamW (dense)", 70.0), ("clip_lora", "CLIP-LoRA", 85.0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 34 runs: three methods, three numbers of shots, three seeds, and some odd ones."""
    root = tmp_path_factory.mktemp("runs")
    for method, title, accuracy in METHODS:
        for shots in (1, 4, 16):
            for seed in (1, 2, 3):
                write_run(root, method=method, title=title, shots=shots, seed=seed,
                          accuracy_percent=accuracy + shots / 4 + seed)  # fmt: skip
    write_run(root, method="zero_shot", title="Zero-shot CLIP", accuracy_percent=61.0)
    for kappa in (5e-4, 5e-2):
        for interval in (0, 10):
            write_run(root, density_ratio=kappa, T=interval, method="so_k", title="SO, κ")
    names = [f"breed {n}" for n in range(37)]
    write_run(root, dataset="oxford_pets", class_names=names, test_images=500)
    write_run(root, method="odd", title=NASTY, class_names=[NASTY, *DIGITS[1:]], folder="o %d#d")
    runs = read_runs(root)
    out = tmp_path_factory.mktemp("out")
    drawn, _ = plots.write(runs.frame, out)
    return page.write(
        runs, make_tables(runs), out, drawn, notes=["Left out: some folder."],
        frames=[frame_data("significance", "Significance", "A p below 0.05 says much.",
                           runs.frame[["method_title", "seed", "accuracy_percent"]])],
    )  # fmt: skip


def _column(tab: Any, selector: str, at: int) -> list[str]:
    return [
        text.strip()
        for text in tab.locator(f"{selector} tbody tr > :nth-child({at})").all_inner_texts()
    ]


def _overflows(tab: Any) -> bool:
    return tab.evaluate("document.documentElement.scrollWidth > window.innerWidth")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_loads_and_only_boxes_scroll_sideways(file, open_page, width, scheme):
    tab = open_page(file, width=width, scheme=scheme)
    for view in VIEWS:
        tab.evaluate(f"location.hash = '#/{view}'")
        section = view.partition("/")[0]
        tab.wait_for_selector(f"#{section} h2:visible")
        assert not _overflows(tab), view
        tab.evaluate("document.querySelectorAll('details').forEach((box) => (box.open = true))")
        assert not _overflows(tab), view
        assert tab.locator("main > section:visible").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(file, open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    tab = open_page(file, scheme=scheme)
    for view in (*VIEWS, "run/oxford_pets-tiny-so-4shot-seed1"):
        tab.evaluate(f"location.hash = '#/{view}'")
        tab.wait_for_timeout(100)
        tab.evaluate("document.querySelectorAll('details').forEach((box) => (box.open = true))")
        results = axe.Axe().run(tab).response
        assert len(results["passes"]) > 10
        violations = [
            (rule["id"], rule["nodes"][0]["target"], rule["nodes"][0]["failureSummary"])
            for rule in results["violations"]
        ]
        assert violations == [], view


def test_a_click_on_a_heading_sorts_the_runs(file, open_page):
    tab = open_page(file, "runs")
    heading = tab.locator("#runs th:has(button[data-key=accuracy_percent])")
    assert heading.get_attribute("aria-sort") == "descending"
    found = [float(text) for text in _column(tab, "#runs", 2)]
    assert found == sorted(found, reverse=True)
    assert len(found) == 34
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in _column(tab, "#runs", 2)] == sorted(found)
    tab.click("#runs button[data-key=dataset]")
    assert heading.get_attribute("aria-sort") is None
    datasets = _column(tab, "#runs", 3)
    assert datasets == sorted(datasets)


def test_tables_sort_within_blocks_and_filter(file, open_page):
    tab = open_page(file, "tables")
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


def test_runs_filter_by_words_and_choices(file, open_page):
    tab = open_page(file, "runs")
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


def test_the_page_works_by_keyboard(file, open_page):
    tab = open_page(file, "tables")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.focus("nav a[href='#/runs']")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#runs table")
    tab.keyboard.press("/")
    tab.keyboard.type("clip-lora 16shot")
    assert tab.locator("#runs tbody tr").count() == 3
    tab.focus("#runs button[data-key=seed]")
    tab.keyboard.press("Enter")
    assert _column(tab, "#runs", 5) == ["3", "2", "1"]
    # The focus stays on the heading of the redrawn table.
    assert tab.evaluate("document.activeElement.dataset.key") == "seed"
    tab.keyboard.press("Space")
    assert _column(tab, "#runs", 5) == ["1", "2", "3"]
    tab.focus("#runs tbody a")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#run h2")
    assert tab.evaluate("document.activeElement.id") == "run-title"
    assert tab.title().startswith("CLIP-LoRA · digits · 16 shots · seed 1")
    tab.go_back()
    tab.wait_for_selector("#runs table")
    assert tab.input_value("#words") == "clip-lora 16shot"
    for box in tab.locator(".scroll").all():
        assert box.get_attribute("tabindex") == "0"
        assert box.get_attribute("aria-label")


def test_a_runs_page_has_all_parts(file, open_page):
    tab = open_page(file, "run/digits-tiny-clip_lora-4shot-seed2")
    run = tab.locator("#run")
    assert "88.00 %" in run.locator(".cards").inner_text().replace("\n", "")
    assert run.locator("h3").all_inner_texts() == [
        "Training",
        "Most confident mistakes",
        "Confusion matrix",
        "Reliability",
        "Classes",
        "Configuration",
    ]
    assert run.locator(".side svg[role=img]").count() == 2
    counts = run.locator("table.confusion td:not(.corner)").all_inner_texts()
    assert len(counts) == 100
    assert sum(map(int, counts)) == 200
    assert run.locator(".reliability .bar").count() > 5
    pictures = run.locator(".gallery img")
    assert pictures.count() == 12
    assert tab.evaluate(
        "Promise.all([...document.querySelectorAll('.gallery img')].map((i) => i.decode()))"
        ".then((all) => all.length)"
    )
    assert " predicted as " in pictures.first.get_attribute("alt")
    assert run.locator("table", has_text="Accuracy by class").locator("tbody tr").count() == 10
    settings = run.locator("table", has_text="Settings of the run")
    assert "optimizer.lr\t0.002" in settings.inner_text()
    assert run.locator(".siblings li").count() == 9
    run.locator("summary", has_text="Provenance").click()
    assert "so_clip method=clip_lora shots=4 seed=2" in run.locator("pre").inner_text()


def test_many_classes_have_a_picture_and_a_list(file, open_page):
    tab = open_page(file, "run/oxford_pets-tiny-so-4shot-seed1")
    assert tab.locator("canvas.confusion").is_visible()
    rows = tab.locator("#run table", has_text="Most frequent confusions").locator("tbody tr")
    assert rows.count() == 15
    assert "The images are not on this machine" in tab.locator("#run").inner_text()
    assert tab.locator(".gallery img").count() == 0


def test_a_runs_texts_are_never_markup(file, open_page):
    tab = open_page(file, f"run/{quote('o %d#d', safe='')}")
    assert tab.locator("#run h2").inner_text().startswith(NASTY)
    assert tab.locator("#nasty").count() == 0
    assert NASTY in tab.locator("#run table.confusion").inner_text()


def test_an_unknown_run_and_a_broken_address_show_a_view(file, open_page):
    tab = open_page(file, "run/nobody%")
    assert "This report has no run named nobody%" in tab.locator("#run").inner_text()
    tab.evaluate("location.hash = '#/what'")
    tab.wait_for_selector("#tables table")


def test_one_of_several_plots_is_shown_and_all_are_printed(file, open_page):
    tab = open_page(file, "plots")
    article = tab.locator("article.plot", has_text="Accuracy against peak memory")
    assert article.locator("figure:visible").count() == 1
    assert article.locator("figcaption:visible b").inner_text() == "1 shot."
    article.locator("select").select_option(label="16 shots")
    assert article.locator("figcaption:visible b").inner_text() == "16 shots."
    tab.emulate_media(media="print")
    assert article.locator("figure:visible").count() == 3


def test_the_readers_theme_overrides_the_systems(file, open_page):
    tab = open_page(file, "plots", scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot svg text')).fill"
    dark, dark_ink = tab.evaluate(paper), tab.evaluate(ink)
    assert tab.get_attribute("#theme", "aria-pressed") == "true"
    tab.click("#theme")
    assert tab.get_attribute("#theme", "aria-pressed") == "false"
    tab.wait_for_timeout(200)
    assert tab.evaluate(paper) == "rgb(255, 255, 255)" != dark
    assert tab.evaluate(ink) != dark_ink
    tab.click("#theme")
    tab.emulate_media(media="print")  # print is always light
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"


def test_without_javascript_the_plots_and_a_notice_are_shown(file, open_page):
    tab = open_page(file, java_script_enabled=False)
    assert tab.locator("#plots").is_visible()
    assert "need JavaScript" in tab.locator("main").inner_text()


def _settled(tab: Any) -> str:
    return tab.evaluate("location.hash")


def test_the_address_keeps_the_filters_and_back_restores_them(file, open_page):
    tab = open_page(file, "runs")
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
    shared = open_page(file, "tables?shots=4&table=memory_tiny&sort=-digits")
    assert shared.input_value("#table") == "memory_tiny"
    assert shared.locator("#tables tr.block").all_inner_texts() == ["4 shots"]
    heading = shared.locator("#tables th:has(button[data-key=digits])")
    assert heading.get_attribute("aria-sort") == "descending"
    assert open_page(file, "runs?dataset=nowhere").input_value("#of-dataset") == ""


def test_a_runs_page_leads_back_to_the_same_filters(file, open_page):
    tab = open_page(file, "runs?q=lora&shots=16")
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
def test_the_search_finds_settings_and_whole_numbers(file, open_page, words, runs):
    tab = open_page(file, f"runs?q={quote(words)}")
    shown = tab.locator("#runs tbody tr").count()
    assert shown == runs, tab.locator("#runs tbody tr").all_inner_texts()


def test_the_search_finds_rows_of_tables_by_their_runs(file, open_page):
    tab = open_page(file, "tables?q=seed%3D2+16")
    assert tab.locator("#tables tr.block").all_inner_texts() == ["16 shots"]
    assert tab.locator("#tables .results tbody tr:not(.block)").count() == 3


def test_nothing_is_cut_on_a_phone(file, open_page):
    tab = open_page(file, "plots", width=390)
    widths = tab.evaluate(
        """() => [...document.querySelectorAll('#plots svg')].filter(s => s.checkVisibility())
          .map(svg => {
            const box = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
            return [box.left, box.right, Math.min(...texts.map(t => t.left)) - box.left,
              box.right - Math.max(...texts.map(t => t.right)),
              Math.min(...texts.map(t => Math.min(t.height, t.width || t.height)))];
          })"""
    )
    assert len(widths) >= 5
    for left, right, inside_left, inside_right, height in widths:
        assert 0 <= left < right <= 390
        assert inside_left > -2
        assert inside_right > -2
        assert height > 5
    tab.set_viewport_size({"width": 1280, "height": 900})
    assert tab.locator(".sheet.narrow:visible").count() == 0
    assert tab.locator(".sheet.wide:visible").count() == len(widths)


def test_no_line_breaks_inside_a_number(file, open_page):
    tab = open_page(file, width=390)
    for view in VIEWS:
        tab.evaluate(f"location.hash = '#/{view}'")
        broken = tab.evaluate(
            r"""() => {
              const broken = [];
              const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
              while (walk.nextNode()) {
                const node = walk.currentNode;
                const parent = node.parentElement;
                if (parent.closest('script, svg, style, option')) continue;
                if (!parent.checkVisibility()) continue;
                for (const found of node.data.matchAll(/[-+]?\d[\d.]*(e[-+]?\d+)?/g)) {
                  const range = document.createRange();
                  range.setStart(node, found.index);
                  range.setEnd(node, found.index + found[0].length);
                  const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
                  if (lines.size > 1) broken.push(node.data);
                }
              }
              return broken;
            }"""
        )
        assert broken == [], view


def test_links_lead_to_files_of_the_report(file, open_page):
    tab = open_page(file, "plots")
    links = tab.eval_on_selector_all(
        "#plots .files a", "all => all.map(a => a.getAttribute('href'))"
    )
    assert len(links) > 10
    assert all((file.parent / link).is_file() for link in links)
    tab.evaluate("location.hash = '#/tables'")
    links = tab.eval_on_selector_all(
        "#tables .files a", "all => all.map(a => a.getAttribute('href'))"
    )
    assert {"tables/accuracy.csv", "tables/accuracy.tex", "tables/significance.md"} <= set(links)
    tab.evaluate("location.hash = '#/run/digits-tiny-so-4shot-seed1'")
    link = tab.locator("#run .sub a")
    assert (file.parent / link.get_attribute("href") / "metrics.json").is_file()
