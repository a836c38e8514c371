"""The page in headless Chromium: it loads, opens runs, fits phones and works by keyboard."""

from urllib.parse import quote

import pytest

from tests.helpers.browser import column, overflows
from tests.helpers.page_runs import NASTY

pytestmark = pytest.mark.slow
VIEWS = ("tables", "plots", "runs", "run/digits-tiny-so-4shot-seed1")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_loads_and_only_boxes_scroll_sideways(page_file, open_page, width, scheme):
    tab = open_page(page_file, width=width, scheme=scheme)
    for view in VIEWS:
        tab.evaluate(f"location.hash = '#/{view}'")
        section = view.partition("/")[0]
        tab.wait_for_selector(f"#{section} h2:visible")
        assert not overflows(tab), view
        tab.evaluate("document.querySelectorAll('details').forEach((box) => (box.open = true))")
        assert not overflows(tab), view
        assert tab.locator("main > section:visible").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(page_file, open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    tab = open_page(page_file, scheme=scheme)
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


def test_the_page_works_by_keyboard(page_file, open_page):
    tab = open_page(page_file, "tables")
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
    assert column(tab, "#runs", 5) == ["3", "2", "1"]
    # The focus stays on the heading of the redrawn table.
    assert tab.evaluate("document.activeElement.dataset.key") == "seed"
    tab.keyboard.press("Space")
    assert column(tab, "#runs", 5) == ["1", "2", "3"]
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


def test_a_runs_page_has_all_parts(page_file, open_page):
    tab = open_page(page_file, "run/digits-tiny-clip_lora-4shot-seed2")
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


def test_many_classes_have_a_picture_and_a_list(page_file, open_page):
    tab = open_page(page_file, "run/oxford_pets-tiny-so-4shot-seed1")
    assert tab.locator("canvas.confusion").is_visible()
    rows = tab.locator("#run table", has_text="Most frequent confusions").locator("tbody tr")
    assert rows.count() == 15
    assert "The images are not on this machine" in tab.locator("#run").inner_text()
    assert tab.locator(".gallery img").count() == 0


def test_a_runs_texts_are_never_markup(page_file, open_page):
    tab = open_page(page_file, f"run/{quote('o %d#d', safe='')}")
    assert tab.locator("#run h2").inner_text().startswith(NASTY)
    assert tab.locator("#nasty").count() == 0
    assert NASTY in tab.locator("#run table.confusion").inner_text()


def test_an_unknown_run_and_a_broken_address_show_a_view(page_file, open_page):
    tab = open_page(page_file, "run/nobody%")
    assert "This report has no run named nobody%" in tab.locator("#run").inner_text()
    tab.evaluate("location.hash = '#/what'")
    tab.wait_for_selector("#tables table")


def test_one_of_several_plots_is_shown_and_all_are_printed(page_file, open_page):
    tab = open_page(page_file, "plots")
    article = tab.locator("article.plot", has_text="Accuracy against peak memory")
    assert article.locator("figure:visible").count() == 1
    assert article.locator("figcaption:visible b").inner_text() == "1 shot."
    article.locator("select").select_option(label="16 shots")
    assert article.locator("figcaption:visible b").inner_text() == "16 shots."
    tab.emulate_media(media="print")
    assert article.locator("figure:visible").count() == 3


def test_the_readers_theme_overrides_the_systems(page_file, open_page):
    tab = open_page(page_file, "plots", scheme="dark")
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


def test_without_javascript_the_plots_and_a_notice_are_shown(page_file, open_page):
    tab = open_page(page_file, java_script_enabled=False)
    assert tab.locator("#plots").is_visible()
    assert "need JavaScript" in tab.locator("main").inner_text()


def test_nothing_is_cut_on_a_phone(page_file, open_page):
    tab = open_page(page_file, "plots", width=390)
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


def test_no_line_breaks_inside_a_number(page_file, open_page):
    tab = open_page(page_file, width=390)
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


def test_links_lead_to_files_of_the_report(page_file, open_page):
    tab = open_page(page_file, "plots")
    links = tab.eval_on_selector_all(
        "#plots .files a", "all => all.map(a => a.getAttribute('href'))"
    )
    assert len(links) > 10
    assert all((page_file.parent / link).is_file() for link in links)
    tab.evaluate("location.hash = '#/tables'")
    links = tab.eval_on_selector_all(
        "#tables .files a", "all => all.map(a => a.getAttribute('href'))"
    )
    assert {"tables/accuracy.csv", "tables/accuracy.tex", "tables/significance.md"} <= set(links)
    tab.evaluate("location.hash = '#/run/digits-tiny-so-4shot-seed1'")
    link = tab.locator("#run .sub a")
    assert (page_file.parent / link.get_attribute("href") / "metrics.json").is_file()
