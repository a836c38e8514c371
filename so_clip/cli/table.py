"""`python -m so_clip table RESULTS_DIR`: the report's tables of accuracy and memory, printed."""

import sys

from so_clip.cli.arguments import OUT, results_parser
from so_clip.cli.guard import guarded
from so_clip.report.formats.files import write_tables
from so_clip.report.formats.text import to_markdown
from so_clip.report.read import read_runs
from so_clip.report.tables import make_tables
from so_clip.system import atomic

SHOWN = ("accuracy", "base_accuracy", "new_accuracy", "harmonic_mean", "transfer", "memory")
EPILOG = """\
They are written as tidy CSV and Markdown too. LaTeX, HTML, what is missing, significance, plots and
a page: python -m so_clip report. Exit codes: 0 done, also where runs were left out; 2 no run can be
used, or the folder cannot be written; 130 interrupted."""


def main() -> int:
    """Run the command line; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    out_help = "folder for the tables (default: RESULTS_DIR/tables)"
    options = results_parser("so_clip table", __doc__, out_help, EPILOG).parse_args(arguments)
    runs = read_runs(options.results_dir)
    out = options.out or options.results_dir / "tables"
    tables = [table for table in make_tables(runs) if table.figure.name in SHOWN]
    with atomic.placed_by(OUT):
        write_tables(tables, out, endings=("md",))
    print("\n".join(map(to_markdown, tables)))
    print(f"{runs.counted}; tables in {out}")
    for reason in runs.skipped:
        print(f"so_clip: left out: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
