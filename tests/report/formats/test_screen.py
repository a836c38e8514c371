"""Tables on a terminal: aligned by the width of letters, in colour, and as wide as the screen."""

import sys

import pytest
from rich.cells import cell_len

from so_clip.report.formats.screen import show_tables
from so_clip.report.measures import Column, Measure
from so_clip.report.table import Block, Cell, Row, Table

HOSTILE = "a_b [link](https://evil.example) \x1b[31m 家猫 [bold]"
COLUMNS = [Column(f"d{number}", f"Dataset {number}") for number in range(8)]


@pytest.fixture
def table() -> Table:
    def cells(mean: float) -> dict[str, Cell]:
        return {column.key: Cell(mean, 0.5, 3, best=mean > 80) for column in COLUMNS}

    rows = [Row("SO", "T=10", cells(81.25)), Row(HOSTILE, "", cells(9.5), source="a paper")]
    blocks = [Block(0, [Row("Zero-shot 家", "", cells(50.0))]), Block(4, rows)]
    return Table(Measure("accuracy", "accuracy_percent", "Accuracy"), "ViT", COLUMNS, blocks, 3)


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout a terminal."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return lambda: monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


def test_a_terminal_gets_aligned_columns_in_colour(table, terminal, capsys, monkeypatch):
    terminal()
    show_tables([table])
    coloured = capsys.readouterr().out
    assert "\x1b[1;32m81.25 ± 0.50\x1b[0m" in coloured  # the best, bold and green
    assert "\x1b[31m" not in coloured  # the title's own colour
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
        show_tables([table])
        plain = capsys.readouterr().out
        assert "\x1b[1;32m" not in plain
    assert "\x1b" not in plain  # a dumb terminal knows no codes at all
    assert "\\_" not in plain
    assert "|" not in plain
    assert "a_b [link]" in plain
    assert "\\u001b[31m" in plain
    rows = [line for line in plain.splitlines() if "±" in line or "Dataset" in line]
    assert all(cell_len(line) <= 100 for line in plain.splitlines())
    ends = {cell_len(line.rstrip()) for line in rows if "Dataset 0" in line or "81.25" in line}
    assert len(ends) <= 2  # the columns are split over a few tables, each aligned
    assert sum("Dataset 0" in line for line in rows) == 1
    assert sum("Dataset 7" in line for line in rows) == 1


def test_a_pipe_gets_markdown_without_links_of_others(table, capsys):
    show_tables([table])
    out = capsys.readouterr().out
    assert "| a\\_b" not in out  # a published row is in italics
    assert "*a\\_b \\[link\\](https:\\//evil.example) \\\\u001b\\[31m 家猫 \\[bold\\]" in out
    assert "\x1b" not in out
