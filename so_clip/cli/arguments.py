"""The command line that all commands share which read a folder of runs."""

import argparse
from pathlib import Path

OUT = "-o FOLDER"


def results_parser(
    module: str, description: str | None, out: str = "", epilog: str = ""
) -> argparse.ArgumentParser:
    """Return a parser of RESULTS_DIR and, where there is something to write, `-o`.

    Args:
        module: what follows `python -m`.
        description: what the command does, such as its module's docstring.
        out: what `-o` is for; "" for a command that writes nothing.
        epilog: more for its help, printed as it is.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=(description or "").replace("`", ""),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results_dir", type=Path, help="the folder that holds the runs' folders")
    if out:
        parser.add_argument("-o", "--out", type=Path, help=out)
    return parser
