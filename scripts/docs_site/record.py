"""Writes the output blocks of pages with what a run of the page prints.

    python -m scripts.docs_site.record docs/start/demo.md ...

The page is run as it is written, in a new home. A page changes only after all its blocks
have run.
"""

import argparse
import importlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.docs_site import warm_python
from scripts.docs_site.run_page import PageError, Shown, run
from so_clip.system.atomic import CannotWrite, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Record each page; return 1 if one cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m scripts.docs_site.record", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="Markdown files")
    options = parser.parse_args(arguments)
    code = 0
    with tempfile.TemporaryDirectory() as folder, warm_python.running(Path(folder)) as warm:
        for number, page in enumerate(options.pages):
            try:
                changed = record(page, Path(folder) / str(number), warm)
            except (PageError, CannotWrite, OSError) as error:
                print(error, file=sys.stderr)
                code = 1
            else:
                print(f"{page}: {changed} outputs are new")
    return code


def record(page: Path, folder: Path, warm: str) -> int:
    """Run a page and write its outputs; return how many have changed.

    Args:
        page: the Markdown file.
        folder: does not exist; for the reader's home.
        warm: socket of a running warm_python.

    Raises:
        PageError: a block fails.
    """
    # By its name: the program's types are checked without the tests.
    home = importlib.import_module("tests.helpers.page_home").write_home(folder / "home")
    (folder / "scratch").mkdir()
    text = page.read_text(encoding="utf-8")
    shown = run(page, home, folder / "scratch", warm)
    for block, output in shown:
        if re.search(r"(?m)^ *```", output):
            raise PageError(f"{page}:{block.line}: a line of the output would end its block: ```")
    new = recorded(text, shown)
    if new != text:
        write_text(page, new)
    old_lines, new_lines = text.split("\n```output\n"), new.split("\n```output\n")
    return sum(old != new for old, new in zip(old_lines, new_lines, strict=True))


def recorded(text: str, shown: Sequence[Shown]) -> str:
    """Return a page's Markdown with new outputs."""
    lines = text.split("\n")
    for block, output in reversed(shown):
        fence = lines[block.line - 1]
        indent = fence[: len(fence) - len(fence.lstrip())]
        first, last = block.line, block.line + block.text.count("\n")
        lines[first:last] = [f"{indent}{line}".rstrip() for line in output.split("\n")]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
