"""Runs the blocks of a page of the documentation in order, as a reader would.

    with warm_python.running(folder) as place:
        outcome = run(page, home, scratch, place)

Each sh block is a bash script; each Python block has the scope of the one before. Both are in
the reader's home, with the files that the page gives. PATH holds only the programs of
page_program.py, so an unknown program fails. A page without output blocks runs with the small
commands of stand_ins.py. With output blocks it runs as it is written, but for a block after the
comment `<!-- small -->`.
"""

import importlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from scripts.docs_site import compare
from scripts.docs_site.blocks import Block, blocks, outside_of_home
from scripts.docs_site.page_program import PROGRAMS, SYSTEM, SYSTEM_PATH
from scripts.docs_site.stand_ins import SOURCES
from scripts.docs_site.warm_python import CLIENT, ROOT, SOCKET

FILES = ("yaml", "json", "csv", "text", "python", "toml")
# Made by the build of the site, which checks them.
BUILT = ("table", "math", "facts")
PATIENCE_SECONDS = 900
# Commands that no test runs, by a part of their text, with the reason.
EXCEPTIONS = {
    "hydra/launcher=ray": "the extra ray needs another cloudpickle than the extra joblib, so the "
    "environment of the tests has no Ray",
}
_COMMAND = re.compile(r"(?m)^(?:.*\\\n)*.*$")  # with its continued lines
_COMMANDS = re.compile(r"(?m)^\$? *(python3?|so.clip|pip|make|torchrun|tensorboard|git) +[-\w.']")
_SCRIPT = """\
trap 'echo "line $LINENO: $BASH_COMMAND" >"$PAGE_STATE/failed"' ERR
set -eEo pipefail
[ ! -f "$PAGE_STATE/variables" ] || . "$PAGE_STATE/variables"
export SO_CLIP_PAGE_SMALL="$1"
trap 'pwd >"$PAGE_STATE/folder"; export -p >"$PAGE_STATE/variables"' EXIT
. "$PAGE_STATE/block"
"""


class PageError(Exception):
    """A block of a page cannot be run, or prints something else than the page says."""


class Shown(NamedTuple):
    """An output block, and what the block before it has printed.

    Attributes:
        block: of the page.
        text: of the run, as the page should have it.
    """

    block: Block
    text: str


class Page:
    """One run of a page.

    Args:
        page: the Markdown file.
        home: stands for $HOME; the reader's data are in it.
        scratch: a folder for programs and outputs.
        warm: socket of a running warm_python.
        small: take the stand-ins of a page without outputs.
        sources: the folder of tests/helpers/page_sources.py, for `prepare`.
    """

    def __init__(
        self, page: Path, home: Path, scratch: Path, warm: str, *, small: bool, sources: Path | None
    ) -> None:
        self.page, self.home, self.scratch, self.small = page, home, scratch, small
        _write_programs(scratch / "bin")
        (scratch / "folder").write_text(f"{home}\n", encoding="utf-8")
        self.environment = {
            "HOME": str(home),
            "PATH": str(scratch / "bin"),
            "PAGE_STATE": str(scratch),
            SOCKET: warm,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",  # outputs are those of a CPU on each machine
            "HF_HOME": str(scratch / "hub"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "100",
            "PYTHONPATH": str(ROOT),  # for processes that a command starts itself
        }
        if "launcher=slurm" in page.read_text(encoding="utf-8"):
            self.environment |= _slurm(scratch)
        if sources is not None:
            self.environment[SOURCES] = str(sources)
        self._session: subprocess.Popen[str] | None = None
        self._groups: list[int] = []

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what the page has left running."""
        if self._session is not None:
            with self._session as session:
                assert session.stdin is not None
                with suppress(OSError, subprocess.TimeoutExpired):
                    session.stdin.close()  # it ends then, and removes its temporary files
                    session.wait(10)
                session.kill()
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def run(self, block: Block) -> str:
        """Run one block, or write its file; return what it printed."""
        if block.file:
            file = self.home / block.file.replace("$HOME/", "").replace("~/", "")
            if not file.resolve().is_relative_to(self.home.resolve()):
                raise self._error(block, f"{block.file} is outside of the reader's home")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.kind == "sh":
            return self._shell(block)
        elif block.kind == "python":
            return self._python(block)
        elif block.kind in FILES:
            raise self._error(block, "has no file: end the text before it with `path/name`:")
        elif block.kind == "":
            if match := _COMMANDS.search(block.text):
                raise self._error(block, f"`{match[0]}` is a command: begin the block with ```sh")
        elif block.kind not in BUILT:
            raise self._error(block, f"the kind {block.kind!r} is not known")
        return ""

    def _shell(self, block: Block) -> str:
        text = _COMMAND.sub(_without_exception, block.text)
        if places := outside_of_home(text):
            raise self._error(block, f"{places[0]} is outside of the reader's home")
        (self.scratch / "block").write_text(text, encoding="utf-8")
        bash, small = str(self.scratch / "bin" / "bash"), self._is_small(block)
        failed, output = self.scratch / "failed", self.scratch / "output"
        failed.unlink(missing_ok=True)
        with output.open("w") as file:
            process = subprocess.Popen(
                [bash, "--noprofile", "--norc", "-c", _SCRIPT, "bash", str(int(small))],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self._folder(),
                env=self.environment,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            try:
                code = process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                raise self._error(block, f"takes more than {PATIENCE_SECONDS} s") from None
        printed = compare.shown(output.read_text("utf-8", "replace"), str(self.home))
        if code:
            where = failed.read_text("utf-8").strip() if failed.exists() else ""
            raise self._error(block, f"exit code {code}, {where}\n{printed}")
        return printed

    def _python(self, block: Block) -> str:
        output = self.scratch / "output"
        output.write_text("")
        comment = block.comment.partition("given:")
        request = {
            "code": block.text,
            "line": block.line,
            "name": self.page.name,
            "given": re.findall(r"[\w=]+", comment[2]),
            "folder": self._folder(),
            "output": str(output),
            "small": self._is_small(block),
        }
        session = self._started()
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(json.dumps(request) + "\n")
        session.stdin.flush()
        if not select.select([session.stdout], [], [], PATIENCE_SECONDS)[0]:
            raise self._error(block, f"takes more than {PATIENCE_SECONDS} s")
        answer = session.stdout.readline()
        printed = compare.shown(output.read_text("utf-8", "replace"), str(self.home))
        error = json.loads(answer) if answer else "Python has ended"
        if error:
            raise self._error(block, f"{printed}\n{error}")
        return printed

    def _started(self) -> subprocess.Popen[str]:
        """Return the process of the page's Python blocks."""
        if self._session is None:
            words = [sys.executable, "-IS", str(CLIENT), "python"]
            self._session = subprocess.Popen(
                [*words, "-m", "scripts.docs_site.python_session"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.home,
                env=self.environment,
            )
        return self._session

    def _is_small(self, block: Block) -> bool:
        return self.small or block.comment.startswith("small")

    def _folder(self) -> str:
        return (self.scratch / "folder").read_text(encoding="utf-8").rstrip("\n")

    def _error(self, block: Block, text: str) -> PageError:
        return PageError(f"{self.page}:{block.line}: ```{block.kind}: {text}")


def run(
    page: Path, home: Path, scratch: Path, warm: str, sources: Path | None = None
) -> list[Shown]:
    """Run all blocks of a page; return its output blocks with what the run printed.

    Args:
        page: the Markdown file.
        home: stands for $HOME; the reader's data are in it.
        scratch: an empty folder outside of it.
        warm: socket of a running warm_python.
        sources: the folder of tests/helpers/page_sources.py, for `prepare`.

    Raises:
        PageError: a block fails or is not known.
    """
    found, printed, before = [], "", ""
    all_blocks = blocks(page)
    small = not any(block.kind == "output" for block in all_blocks)
    with Page(page, home, scratch, warm, small=small, sources=sources) as running:
        for block in all_blocks:
            if block.kind != "output":
                printed, before = running.run(block), block.kind
                continue
            if before not in ("sh", "python"):
                raise PageError(f"{page}:{block.line}: output follows no sh or Python block")
            try:
                text = compare.chosen(printed, block.comment)
            except ValueError as error:
                raise PageError(f"{page}:{block.line}: {error}") from error
            found.append(Shown(block, text))
    return found


def check(shown: Sequence[Shown], page: Path) -> None:
    """Compare the outputs of a page with those of a run.

    Raises:
        PageError: naming the first line that differs.
    """
    for block, text in shown:
        if different := compare.difference(block.text, text):
            raise PageError(
                f"{page}:{block.line}: the output is another: {different}\n"
                f"`python -m scripts.docs_site.record {page}` writes that of a new run.\n{text}"
            )


def _without_exception(command: re.Match[str]) -> str:
    """Return a command, or one that does nothing for an exception."""
    if any(part in command[0] for part in EXCEPTIONS):
        return "true" + "\n" * command[0].count("\n")
    return command[0]


def _write_programs(folder: Path) -> None:
    """Write a folder for PATH: the programs that the runner knows, and those of the system."""
    folder.mkdir(parents=True)
    for name in SYSTEM:
        if place := shutil.which(name, path=SYSTEM_PATH):
            (folder / name).symlink_to(place)
    client = shlex.join([sys.executable, "-IS", str(CLIENT)])
    for name in PROGRAMS:
        file = folder / name
        file.write_text(f'#!/bin/bash\nexec {client} {name} "$@"\n', encoding="utf-8")
        file.chmod(0o755)


def _slurm(scratch: Path) -> dict[str, str]:
    """Add stand-ins for Slurm's commands to PATH; return their variables."""
    # By its name: the program's types are checked without the tests.
    slurm = importlib.import_module("tests.helpers.fake_slurm")
    variables: dict[str, str] = slurm.install(scratch / "slurm")
    for file in (scratch / "slurm" / "bin").iterdir():
        (scratch / "bin" / file.name).symlink_to(file)
    return {key: value for key, value in variables.items() if key != "PATH"}
