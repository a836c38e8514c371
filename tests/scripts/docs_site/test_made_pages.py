"""The pages made from the program name every command, flag, topic, choice and option."""

import re
from pathlib import Path

import nbformat
import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts.docs_site import command_pages, fences, hooks, made_pages, reference, tables
from scripts.docs_site.program import CONF, commands
from so_clip.cli.help import ALL, IMAGES
from so_clip.cli.program import COMMANDS
from so_clip.config.settings import declared_options
from tests.helpers.command import ROOT

TABLE = "file: results/tables/digits_methods.csv\nrows: [method_title]\nwhere: {{{where}}}\n{more}"
SHOTS = "columns: shots\nvalues: {accuracy_percent: Accuracy}\nsort: accuracy_percent"


def shown(source: str) -> str:
    return fences.table(source, "table", "table", {}, None)


def page_of(name: str) -> str:
    return command_pages.pages()[f"reference/commands/{name}.md"]


def test_every_command_has_a_page_with_its_flags_and_guides():
    made = command_pages.pages()
    index = made["reference/commands/index.md"]
    for name, (_, summary) in COMMANDS.items():
        page = made[f"reference/commands/{name}.md"]
        assert page.startswith(f"# so_clip {name}\n\n{summary}\n")
        assert f"]({name}.md) |" in index
        for parameter in commands()[name].params:
            if parameter.param_type_name == "option":
                assert all(f"`{flag}`" in page for flag in parameter.opts)
    guide = "- [Classify images with a finished run](../../how_to/predict.md)"
    assert f"\n{guide}\n" in page_of("predict")
    topics = page_of("topics")
    assert all(f"\n## --help {topic}\n" in topics for topic in IMAGES.topics if topic != ALL)


def test_every_choice_and_every_declared_option_is_on_the_page():
    page = reference.options()
    for group in ("adapter", "backbone", "method", "model", "optimizer", "schedule", "experiment"):
        for file in (CONF / group).glob("*.yaml"):
            assert f"\n### {group}={file.stem}\n" in page
    assert [name for name in declared_options() if f"`{name}`" not in page] == []
    assert "| `optimizer.density_ratio` | `5e-4` | the paper's kappa" in page


def test_a_table_has_means_and_deviations_and_says_where_they_are_from():
    html = shown(TABLE.format(where="shots: [1, 4], method: [so, lora]", more=SHOTS))
    assert html.count("<tr>") == 3
    assert html.count(" ± ") == 4
    assert "scripts/digits_tables.py" in html
    assert "results/tables/digits_methods.csv" in html


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("file: results/tables/none.csv\nrows: [a]\nvalues: {b: B}", "results/tables/none.csv"),
        (TABLE.format(where="shots: 3", more=SHOTS), "shots=3"),
        (TABLE.format(where="shot: 4", more=SHOTS), "no column shot"),
        (TABLE.format(where="shots: 4", more="values: {accuracy: A}"), "no column accuracy"),
        ("file: README.md\nrows: [a]\nvalues: {b: B}", "README.md"),
        (TABLE.format(where="shots: 4", more=SHOTS + "\nwidth: 3"), "width"),
    ],
)
def test_a_wrong_file_column_or_value_stops_the_build(source: str, word: str):
    with pytest.raises(fences.FenceError, match=word):
        shown(source)


def test_a_formula_is_mathml_and_an_unknown_command_stops_the_build():
    given = ("math", "math", {}, None)
    html = fences.formula(r"\theta_{t+1} = \theta_t - \frac{m}{\sqrt{v}}", *given)
    assert "<math" in html
    assert "<mfrac>" in html
    with pytest.raises(fences.FenceError, match="thetaa"):
        fences.formula(r"\thetaa", *given)
    # latex2mathml shows the & of an environment that it does not know.
    with pytest.raises(fences.FenceError, match="split"):
        fences.formula(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", *given)
    two_lines = r"\begin{split} a &= b \\ c &= d \end{split}"
    assert fences.formula(two_lines, *given).count("<mtr>") == 2


@pytest.mark.parametrize("formula", [r"\frac{a", r"\text{<script>}", r"\text{<b>a</b>}"])
def test_a_broken_formula_stops_the_build(formula: str):
    with pytest.raises(fences.FenceError, match="math: "):
        fences.formula(formula, "math", "math", {}, None)


BROKEN = {
    "no rows": ("a,b\n", "rows: [a]\nvalues: {b: B}", "no row"),
    "an empty file": ("", "rows: [a]\nvalues: {b: B}", "cannot be read"),
    "more cells than heads": ("a,b\n1,2\n1,2,3,4\n", "rows: [a]\nvalues: {b: B}", "cannot be read"),
    "no groups": ("a,b\n1,2\n", "rows: []\nvalues: {b: B}", "no row or no column"),
    "a word for a number": ("a,b\n1,2\n", "rows: [a]\nvalues: {b: B}\nwhere: {a: x}", "a=x"),
    "digits below 0": ("a,b\n1,2\n", "rows: [a]\nvalues: {b: B}\ndigits: -1", "digits"),
    "sorted by words": ("a,b\nx,2\ny,3\n", "rows: [a]\nvalues: {b: B}\nsort: a", "mean"),
}


@pytest.mark.parametrize(("content", "described", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_table_stops_the_build(
    content: str, described: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.csv").write_text(content)
    with pytest.raises(fences.FenceError, match=message):
        shown(f"file: results/a.csv\n{described}")


def test_a_table_is_below_results_and_its_cells_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    for file in ("a.csv", "results/a.csv"):
        (tmp_path / file).write_text("a,b,command\n<script>x</script>,1,<img src=x>\n")
    described = "rows: [a]\nvalues: {b: <b>}"
    html = shown(f"file: results/a.csv\n{described}")
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;x&lt;/script&gt;" in html
    with pytest.raises(fences.FenceError, match="below results/"):
        shown(f"file: results/../a.csv\n{described}")


def test_a_column_of_a_table_has_its_own_digits_and_a_title():
    digits = "digits: {trainable_parameters: 0}\nvalues: {trainable_parameters: P, lr: L}"
    html = shown(TABLE.format(where="shots: 1, method: vera", more=digits))
    assert re.search(r">\d[\d,]* ± 0</td><td class=\"number\">\d+\.\d ± ", html)
    by = "columns: method_title\nvalues: {accuracy_percent: Accuracy}"
    assert "Accuracy by method<" in shown(TABLE.format(where="shots: 1", more=by))
    with pytest.raises(fences.FenceError, match="no column seeds"):
        shown(
            TABLE.format(
                where="shots: 1", more=digits.replace("parameters: 0", "parameters: 0, seeds: 0")
            )
        )


def test_a_comment_names_a_page_by_its_heading():
    link = "[Choose which weights a method trains](../how_to/roles.md)"
    assert link in reference.options()
    assert "docs/" not in reference.options()


def test_a_picture_of_a_notebook_without_words_stops_the_build(tmp_path: Path):
    cell = nbformat.v4.new_code_cell("draw()")
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "iVBORw0K"})]
    cell.metadata["alt"] = "A line that falls."
    file = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    page = made_pages.notebook_page(file, "notebooks/small.md")["notebooks/small.md"]
    assert "![A line that falls.](small_files/small_0_0.png)" in str(page)
    del cell.metadata["alt"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    with pytest.raises(ValueError, match="cell 0"):
        made_pages.notebook_page(file, "notebooks/small.md")


WRONG_BLOCKS = {
    "table": ("file: results/tables/none.csv", "table: rows: Field required; values: "),
    "math": ("\\thetaa", "math: \\thetaa: latex2mathml does not know"),
    "facts": ("method: sso", "facts: conf/method/sso.yaml does not exist"),
}


@pytest.mark.parametrize("kind", fences.KINDS)
def test_the_error_of_a_made_block_names_the_page_and_the_line(kind: str, tmp_path: Path):
    source, message = WRONG_BLOCKS[kind]
    text = f"<!-- a -->\n\n# A\n\n- b\n\n    ```{kind}\n    {source}\n    ```\n"
    (tmp_path / "a.md").write_text(text)
    config = load_config(str(ROOT / "mkdocs.yml"))
    file = File("a.md", str(tmp_path), str(tmp_path / "site"), use_directory_urls=False)
    page, files = Page(None, file, config), Files([file])
    page.read_source(config)
    page.markdown = hooks.on_page_markdown(page.markdown or "", page, config, files)
    with pytest.raises(fences.FenceError) as failed:
        page.render(config, files)
    assert str(failed.value).startswith(f"docs/a.md: line 7: {message}")


def test_every_made_block_of_the_site_has_a_place_for_its_errors():
    made = re.findall(r"- name: (\w+)\n +class: ", (ROOT / "mkdocs.yml").read_text())
    assert set(made) == {*fences.KINDS, "output"}  # an output cannot fail


def test_output_is_plain_text():
    html = fences.output("a <b> & *c*\n", "output", "output", {}, None)
    assert "a &lt;b&gt; &amp; *c*" in html
