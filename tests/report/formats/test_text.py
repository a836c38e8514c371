"""Tables as CSV, Markdown, LaTeX and HTML: all numbers and marks are there, all texts are safe."""

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from so_clip.report.formats import latex
from so_clip.report.formats import text as formats
from so_clip.report.formats.numbers import readable
from so_clip.report.published import add_published
from so_clip.report.read import read_runs
from so_clip.report.table import Table
from so_clip.report.tables import make_tables
from tests.helpers.report_runs import PAPER, VIT, squeezed, write_grid, write_run

NASTY = (
    "50 % & #1 $x$ _a_ {b} ~c ^d \\e",
    "[bracket] first",
    "* star first",
    "<b>bold</b> & \"quoted\" 'single'",
    "κ × T, ±1, naïve café, Λ, 日本",
    "a--b `c` |pipe|",
    "\\input{/etc/passwd}",
    "%",
)


def _tables(root: Path) -> list[Table]:
    runs = read_runs(root)
    return add_published(make_tables(runs), runs)


def _accuracy(root: Path) -> Table:
    return _tables(root)[0]


class _Html(HTMLParser):
    """Collects cells by row, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def _parsed(text: str) -> _Html:
    parser = _Html()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_markdown_has_every_cell_with_the_best_in_bold(tmp_path):
    folders = write_grid(tmp_path, train_seconds=2.5)
    (folders["so", "dtd", 3] / "metrics.json").unlink()
    lines = squeezed(formats.to_markdown(_accuracy(tmp_path))).splitlines()
    assert re.fullmatch(r"\|(:-+\|){2}(-+:\|){5}", lines.pop(3))
    assert lines == [
        "Test accuracy in percent, tiny: mean ± standard deviation over 3 seeds.",
        "",
        "| shots | method | EuroSAT | DTD | average | memory (MiB) | training (s) |",
        "| 4 | CLIP-LoRA | **61.47 ± 0.40** | **60.47 ± 0.40** | **60.97 ± 0.40** | 10.0 | 2.5 |",
        "| 4 | SO | 51.47 ± 0.40 | 50.25 ± 0.21 (2) | 50.86 | 10.0 | 2.5 |",
    ]


def test_a_cell_without_runs_is_a_dash(tmp_path):
    folders = write_grid(tmp_path)
    for seed in (1, 2, 3):
        (folders["so", "dtd", seed] / "metrics.json").unlink()
    line = squeezed(formats.to_markdown(_accuracy(tmp_path))).splitlines()[5]
    assert line == "| 4 | SO | 51.47 ± 0.40 | – | – | – |"


def test_the_csv_has_each_cell_once(tmp_path):
    write_grid(tmp_path)
    text = formats.tidy([_accuracy(tmp_path)]).to_csv(index=False)
    frame = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert list(frame.columns) == [
        "dataset",
        "backbone",
        "shots",
        "method",
        "method_title",
        "variant",
        "mean",
        "std",
        "runs",
        "best",
        "source",
        "uncertainty",
    ]
    assert len(frame) == 2 * 3  # with the average
    row = frame[(frame["dataset"] == "dtd") & (frame["method"] == "clip_lora")].iloc[0]
    assert (row["runs"], row["best"], row["source"]) == (3, True, "")
    assert float(row["mean"]) == pytest.approx(60 + 1.4 / 3)


def test_published_rows_are_marked_in_every_format(tmp_path):
    for dataset in PAPER:
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT)
    table = _accuracy(tmp_path)
    markdown = formats.to_markdown(table)
    assert "*SO [published: README of nairouz/SO, uncertainty not given]*" in markdown
    assert "| 78.9 |" in squeezed(markdown)  # as many digits as in the source
    frame = formats.tidy([table])
    digitised = frame[(frame["method_title"] == "CLIP-LoRA") & (frame["dataset"] == "dtd")]
    (row,) = digitised.to_dict("records")
    assert (row["mean"], row["uncertainty"]) == (63.8, 0.1)
    assert row["source"] == "arXiv 2405.18541, Figure 2, digitised"
    assert pd.isna(row["runs"])
    assert table.blocks[0].title == "4 shots"
    assert r"\emph{SO} (published)\textsuperscript{" in latex.to_latex(table)
    assert "published: README of nairouz/SO, uncertainty not given." in latex.to_latex(table)
    html = formats.to_html(table)
    assert '<em>SO</em> <small class="published">published: README of nairouz/SO' in html


def test_html_has_every_cell_with_the_best_in_bold(tmp_path):
    write_grid(tmp_path)
    parsed = _parsed(formats.to_html(_accuracy(tmp_path)))
    header, first, _ = parsed.rows
    assert header == ["shots", "method", "EuroSAT", "DTD", "average", "memory (MiB)"]
    assert first[:3] == ["4", "CLIP-LoRA", "61.47 ± 0.40"]
    text = formats.to_html(_accuracy(tmp_path))
    assert "<strong>61.47 ± 0.40</strong>" in text
    assert text.startswith('<table id="accuracy_tiny">')
    assert text.count("<tbody>") == 1


@pytest.mark.parametrize("name", NASTY)
def test_names_are_plain_text_in_html_and_markdown(tmp_path, name):
    write_run(tmp_path, "a", method_title=name)
    table = _accuracy(tmp_path)
    parsed = _parsed(formats.to_html(table))
    assert parsed.rows[1][1] == name
    (line,) = formats.to_markdown(table).splitlines()[4:5]
    assert line.replace("\\|", "").count("|") == 5
    assert "<b>" not in line.replace("\\<", "")


def _compile(folder: Path, name: str = "all.tex") -> str:
    """Compile a document and return its log."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_latex_of_nasty_names_and_of_published_rows_compiles(tmp_path):
    runs = tmp_path / "runs"
    for at, name in enumerate(NASTY):
        write_run(runs, f"n{at}", method=f"n{at}", method_title=name, optimizer__x=name)
    for shots in (1, 4):
        for dataset in PAPER:
            write_run(runs, f"{dataset}{shots}", dataset=dataset, backbone=VIT, shots=shots)
    texts = [latex.to_latex(table) for table in _tables(runs)]
    (tmp_path / "x.tex").write_text(latex.HEADER + "\n".join(texts))
    (tmp_path / "all.tex").write_text(latex.document(["x"]))
    log = _compile(tmp_path)
    assert "Output written" in log
    assert "Missing character" not in log
    assert "Float too large" not in log


def test_a_long_latex_table_is_split_over_pages(tmp_path):
    for shots in (1, 4):
        for at in range(60):
            write_run(
                tmp_path, f"{shots}-{at}", method=f"m{at}", method_title=f"M{at}", shots=shots
            )
    text = latex.to_latex(_accuracy(tmp_path))
    floats = text.split("\\begin{table*}")[1:]
    rows = [
        [line for line in page.splitlines() if line.startswith("M") and "&" in line]
        for page in floats
    ]
    assert [len(page) - 1 for page in rows] == [45, 45, 30]  # without the headers
    assert [page.count("\\emph{") for page in floats] == [1, 2, 1]  # one heading per block
    assert [page.count("\\midrule") for page in floats] == [1, 2, 1]
    names = [line.split(" &")[0] for page in rows for line in page[1:]]
    assert sorted(names) == sorted(f"M{at}" for at in range(60) for _ in (1, 4))
    labels = [page.partition("\\label{tab:")[2].partition("}")[0] for page in floats]
    assert labels == ["accuracy_tiny", "accuracy_tiny-2", "accuracy_tiny-3"]
    assert [page.count("(continued)") for page in floats] == [0, 1, 1]


@given(st.text(max_size=30))
def test_latex_escapes_every_special_character(text):
    escaped = latex.escape(text)
    assert escaped.isascii()
    assert "\n" not in escaped
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}"):
        escaped = escaped.replace(command, "")
    for character in "&%$#_{}":
        escaped = escaped.replace(f"\\{character}", "")
    for part in ("{[}", "{*}"):
        escaped = escaped.replace(part, "")
    assert not set("&%$#_~^*") & set(escaped)
    assert escaped.count("{") == escaped.count("}")


@given(st.text("abc XYZ019.,:;!?()/-+=", max_size=30))
def test_latex_does_not_change_plain_text(text):
    assert latex.escape(text) == " ".join(text.split())


def test_a_plain_frame_has_all_formats(tmp_path):
    frame = pd.DataFrame({"method": ["A & B", "c|d"], "p": [0.01234, float("nan")], "n": [3, 4]})
    texts = readable(frame)
    assert texts.to_dict("list") == {
        "method": ["A & B", "c|d"],
        "p": ["0.012", "–"],
        "n": ["3", "4"],
    }
    lines = squeezed(formats.frame_to_markdown(texts, "Title.", 1)).splitlines()
    assert [lines[2], *lines[4:]] == [
        "| method | p | n |",
        "| A & B | 0.012 | 3 |",
        "| c\\|d | – | 4 |",
    ]
    assert _parsed(formats.frame_to_html(texts, "Title.", "x")).rows[1] == ["A & B", "0.012", "3"]
    (tmp_path / "x.tex").write_text(latex.frame_to_latex(texts, "Title, p < 0.05.", "x", 1))
    (tmp_path / "all.tex").write_text(latex.document(["x"]))
    _compile(tmp_path)
