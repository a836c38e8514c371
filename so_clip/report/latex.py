"""Tables in LaTeX, for booktabs."""

import unicodedata
from collections.abc import Iterable, Sequence
from string import ascii_lowercase

import pandas as pd

from so_clip.report.formats import MISSING, row_texts
from so_clip.report.tables import Block, Row, Table

HEADER = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
# With more columns a table is made as wide as the page and no wider.
_NARROW = 6
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
    """Return the table as a float with its caption, its label `tab:NAME` and its notes."""
    sources = {
        reference: ascii_lowercase[at % 26] * (1 + at // 26)
        for at, reference in enumerate(
            dict.fromkeys(
                row.reference for block in table.blocks for row in block.rows if row.source
            )
        )
    }
    columns = len(table.columns)
    head = ["Method", *(column.title for column in table.columns)]
    lines = [
        f"\\begin{{tabular}}{{l{'r' * columns}}}",
        "\\toprule",
        _line(map(escape, head)),
    ]
    for block in table.blocks:
        lines += [
            "\\midrule",
            f"\\multicolumn{{{columns + 1}}}{{l}}{{\\emph{{{block.title}}}}} \\\\",
        ]
        lines += [_row(table, block, row, sources) for row in block.rows]
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"\\textsuperscript{{{mark}}} {escape(source)}." for source, mark in sources.items()]
    notes += [escape(note) for note in table.notes]
    return _float("\n".join(lines), columns, table.caption + ".", table.name, notes)


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


def document(files: Sequence[str]) -> str:
    """Return a document that shows the tables of these files."""
    inputs = "\n".join(f"\\input{{{file}}}\\clearpage" for file in files)
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


def _row(table: Table, block: Block, row: Row, sources: dict[str, str]) -> str:
    name = escape(row.name)
    if row.source:
        name = f"\\emph{{{name}}} (published)\\textsuperscript{{{sources[row.reference]}}}"
    cells = []
    for column, text in zip(table.columns, row_texts(table, block, row), strict=True):
        best = column.key in row.cells and row.cells[column.key].best
        cells.append(f"\\textbf{{{escape(text)}}}" if best else escape(text))
    return _line([name, *cells])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
