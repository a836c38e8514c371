"""Tables in LaTeX, for booktabs."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase

import pandas as pd

from so_clip.report.formats.text import MISSING, row_texts
from so_clip.report.tables import Block, Row, Table

HEADER = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
# With more columns a table is made as wide as the page and no wider.
_NARROW = 6
# So many fit on a page.
_ROWS = 45
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    '"': "''",
    # Neither may follow a line's end.
    "[": "{[}",
    "*": "{*}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    MISSING: "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
# Those Greek letters that look like no Latin one; of the others there are no commands.
_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi"),
    "omega",
)


def escape(text: str) -> str:
    """Return text that LaTeX prints as it is, as far as pdflatex's fonts reach.

    Accents are left out where there is no other way, other letters are named by their code point.
    """
    return "".join(map(_escaped, " ".join(text.split())))


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii():
        return character if character.isprintable() else ""
    name = unicodedata.name(character, "").rpartition("GREEK SMALL LETTER ")[2].lower()
    name = name.replace("lamda", "lambda")
    if name in _GREEK:
        return f"\\ensuremath{{\\{name}}}"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(map(_escaped, plain)) or f"[U+{ord(character):04X}]"


def to_latex(table: Table) -> str:
    """Return the table as floats that fit on a page each, with captions, labels and notes.

    The first has the label `tab:NAME`; where there are more, those are `tab:NAME-2` and so on.
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
        columns = len(table.columns)
        floats.append(_float(_grid(table, blocks, marks), columns, caption, name, notes))
    return "\n".join(floats)


def _pages(blocks: Sequence[Block]) -> list[list[Block]]:
    """Share blocks out over pages; one that is too long for a page goes on on the next."""
    pages: list[list[Block]] = []
    room = 0
    for block in blocks:
        rows = list(block.rows)
        if len(rows) > room and len(rows) <= _ROWS:
            room = 0
        while rows:
            if room == 0:
                pages.append([])
                room = _ROWS
            pages[-1].append(Block(block.shots, rows[:room]))
            rows, room = rows[room:], room - min(room, len(rows))
    return pages


def _grid(table: Table, blocks: Sequence[Block], marks: Mapping[str, str]) -> str:
    columns = len(table.columns)
    head = ["Method", *(column.title for column in table.columns)]
    lines = [f"\\begin{{tabular}}{{l{'r' * columns}}}", "\\toprule", _line(map(escape, head))]
    for block in blocks:
        title = f"\\multicolumn{{{columns + 1}}}{{l}}{{\\emph{{{block.title}}}}} \\\\"
        lines += ["\\midrule", title]
        lines += [_row(table, block, row, marks) for row in block.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def frame_to_latex(frame: pd.DataFrame, caption: str, name: str, texts: int) -> str:
    """Return a frame of texts as a float; its first `texts` columns are no numbers."""
    columns = len(frame.columns)
    lines = [
        f"\\begin{{tabular}}{{{'l' * texts}{'r' * (columns - texts)}}}",
        "\\toprule",
        _line(map(escape, frame.columns)),
        "\\midrule",
        *(_line(map(escape, row)) for row in frame.itertuples(index=False)),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return _float("\n".join(lines), columns, caption, name, [])


def document(names: Sequence[str]) -> str:
    """Return a document that shows the tables of these files, NAME.tex each."""
    inputs = "\n".join(f"\\input{{{name}.tex}}\\clearpage" for name in names)
    return (
        "\\documentclass{article}\n\\usepackage[a4paper,landscape,margin=1.5cm]{geometry}\n"
        f"\\usepackage{{booktabs}}\n\\usepackage{{graphicx}}\n\\begin{{document}}\n{inputs}\n"
        "\\end{document}\n"
    )


def _float(grid: str, columns: int, caption: str, name: str, notes: Sequence[str]) -> str:
    if columns > _NARROW:
        grid = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{grid}}}"
    below = f"\n\\par\\smallskip\n{{\\footnotesize {' '.join(notes)}\\par}}" if notes else ""
    return (
        "\\begin{table*}[tp]\n\\centering\n"
        f"\\caption{{{escape(caption)}}}\n\\label{{tab:{name}}}\n"
        f"{grid}{below}\n\\end{{table*}}\n"
    )


def _row(table: Table, block: Block, row: Row, marks: Mapping[str, str]) -> str:
    name = escape(row.name)
    if row.source:
        name = f"\\emph{{{name}}} (published)\\textsuperscript{{{marks[row.reference]}}}"
    cells = []
    for column, text in zip(table.columns, row_texts(table, block, row), strict=True):
        best = column.key in row.cells and row.cells[column.key].best
        cells.append(f"\\textbf{{{escape(text)}}}" if best else escape(text))
    return _line([name, *cells])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
