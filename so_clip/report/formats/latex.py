"""Tables in LaTeX; pandas lays out the `tabular` with booktabs."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_lowercase

import pandas as pd

from so_clip.report.formats.text import MISSING, text_frame
from so_clip.report.table import Block, Row, Table

HEADER = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
# A table with more columns is scaled to the width of the page.
_NARROW = 6
# The number of rows that fit on a page.
_ROWS = 45
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    '"': "''",
    # At the start of a line, these two would be read as an option of the line break before it.
    "[": "{[}",
    "*": "{*}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    MISSING: "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
# LaTeX has no command for omicron, which looks like a Latin letter.
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega"
)


def escape(text: str) -> str:
    """Return text that pdflatex prints unchanged.

    Accents without a glyph in pdflatex's fonts are dropped. Other characters become code points.
    """
    return "".join(map(_escaped, " ".join(text.split())))


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii():
        return character if character.isprintable() else ""
    name = unicodedata.name(character, "").rpartition("GREEK SMALL LETTER ")[2].lower()
    name = name.replace("lamda", "lambda")
    if name in _GREEK.split():
        return f"\\ensuremath{{\\{name}}}"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(map(_escaped, plain)) or f"[U+{ord(character):04X}]"


def to_latex(table: Table) -> str:
    """Return the table as floats with captions, labels and notes. Each float fits on a page.

    The first has the label `tab:NAME`, further ones `tab:NAME-2` and so on.
    """
    rows = [row for block in table.blocks for row in block.rows]
    references = dict.fromkeys(row.reference for row in rows if row.source)
    marks = {
        reference: ascii_lowercase[at % 26] * (1 + at // 26)
        for at, reference in enumerate(references)
    }
    floats = []
    for number, blocks in enumerate(_pages(table.blocks), start=1):
        shown = {row.reference for block in blocks for row in block.rows if row.source}
        notes = [
            f"\\textsuperscript{{{mark}}} {escape(reference)}."
            for reference, mark in marks.items()
            if reference in shown
        ]
        name, caption = table.name, f"{table.caption}."
        if number == 1:
            notes += map(escape, table.notes)
        else:
            name, caption = f"{name}-{number}", f"{table.caption} (continued)."
        floats.append(_float(_with_headings(table, blocks, marks), 1, caption, name, notes))
    return "\n".join(floats)


def _pages(blocks: Sequence[Block]) -> list[list[Block]]:
    """Distribute blocks over pages; a block that is longer than a page is split."""
    pages: list[list[Block]] = []
    room = 0
    for block in blocks:
        rows = list(block.rows)
        if room < len(rows) <= _ROWS:
            room = 0
        while rows:
            if room == 0:
                pages.append([])
                room = _ROWS
            pages[-1].append(replace(block, rows=rows[:room]))
            rows, room = rows[room:], room - min(room, len(rows))
    return pages


def _with_headings(table: Table, blocks: Sequence[Block], marks: Mapping[str, str]) -> pd.DataFrame:
    """Return the blocks as LaTeX, each block with a heading before its first cell."""

    def name(row: Row) -> str:
        label = escape(row.name)
        if row.source:
            mark = marks[row.reference]
            label = f"\\emph{{{label}}} (published)\\textsuperscript{{{mark}}}"
        return label

    frame = text_frame(table, blocks, escape, "\\textbf{{{}}}", name).drop(
        columns=table.words.shots
    )
    frame = frame.rename(columns={"method": "Method"})
    at = 0
    for number, block in enumerate(blocks):
        rule = "\\midrule\n" if number else ""  # the header's own rule precedes the first block
        heading = f"\\multicolumn{{{len(frame.columns)}}}{{l}}{{\\emph{{{block.title}}}}} \\\\\n"
        frame.iloc[at, 0] = f"{rule}{heading}{frame.iloc[at, 0]}"
        at += len(block.rows)
    return frame


def frame_to_latex(frame: pd.DataFrame, caption: str, name: str, texts: int) -> str:
    """Return a frame of texts as a float; its first `texts` columns are no numbers."""
    return _float(frame.map(escape).rename(columns=escape), texts, caption, name, [])


def document(names: Sequence[str]) -> str:
    """Return a document that shows the tables in the files NAME.tex."""
    inputs = "\n".join(f"\\input{{{name}.tex}}\\clearpage" for name in names)
    return (
        "\\documentclass{article}\n\\usepackage[a4paper,landscape,margin=1.5cm]{geometry}\n"
        f"\\usepackage{{booktabs}}\n\\usepackage{{graphicx}}\n\\begin{{document}}\n{inputs}\n"
        "\\end{document}\n"
    )


def _float(frame: pd.DataFrame, texts: int, caption: str, name: str, notes: Sequence[str]) -> str:
    """Return a frame of LaTeX as a float; its first `texts` columns are left-aligned."""
    numbers = len(frame.columns) - texts
    styler = frame.style.hide(axis="index")
    grid = styler.to_latex(hrules=True, column_format="l" * texts + "r" * numbers).rstrip("\n")
    if len(frame.columns) > _NARROW:
        grid = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{grid}}}"
    below = f"\n\\par\\smallskip\n{{\\footnotesize {' '.join(notes)}\\par}}" if notes else ""
    return (
        "\\begin{table*}[tp]\n\\centering\n"
        f"\\caption{{{escape(caption)}}}\n\\label{{tab:{name}}}\n"
        f"{grid}{below}\n\\end{{table*}}\n"
    )
