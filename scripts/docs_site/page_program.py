"""Runs one command of a page in a process of its own: Python, or a stand-in for another program.

Python, the console command, torchrun and make's demo are run. Where a page needs weights, published
data or many runs, `stand_ins.py` makes the command small. pip and make only say what they would do.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.docs_site.stand_ins import SMALL, SOURCES, small, small_script
from scripts.docs_site.warm_python import ROOT


def run(program: str, arguments: Sequence[str]) -> int:
    """Run a program of a page by its name; return its exit code."""
    try:
        return PROGRAMS[program](list(arguments))
    except SystemExit as error:
        return _code_of(error)
    except Exception:
        traceback.print_exc()
        return 1


def python(arguments: list[str]) -> int:
    """Run `python -m MODULE`, `python -c CODE`, `python FILE` or code from the input."""
    sys.path.insert(0, "")
    if arguments[:1] == ["-m"]:
        module = arguments[1]
        words = arguments[2:]
        passed: tuple[int, ...] = (0,)
        if module == "so_clip" and _is_small():
            if words[:1] == ["prepare"] and "--help" not in words and SOURCES in os.environ:
                return _prepare(words)
            words, passed = small(words)
            if words[:1] == ["backbones"] and _has_run(words):
                return 0
        sys.argv = [module, *words]
        code = _main_of(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
        return 0 if code in passed else code
    if arguments[:1] == ["-c"]:
        sys.argv = ["-c", *arguments[2:]]
        return _main_of(lambda: _execute(arguments[1], "<string>"))
    if arguments and arguments[0] != "-":
        file = Path(arguments[0])
        if not file.exists() and (ROOT / file).is_file():
            file = ROOT / file  # a script of the repository
        sys.argv = [str(file), *(small_script(arguments) if _is_small() else arguments[1:])]
        sys.path[0] = str(file.parent)
        return _main_of(lambda: runpy.run_path(str(file), run_name="__main__"))
    return _main_of(lambda: _execute(sys.stdin.read(), "<stdin>"))


def _has_run(words: Sequence[str]) -> bool:
    """Return whether this small command has run in the page. It examines all methods each time."""
    file, line = Path(os.environ["PAGE_STATE"]) / "has_run", shlex.join(words)
    known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    file.write_text("\n".join([*known, line]), encoding="utf-8")
    return line in known


def _prepare(words: list[str]) -> int:
    """Download from this machine: a copy of the program has cards with other sources.

    What the home has from the start is removed at the first time, so that it is downloaded.
    """
    sources = Path(os.environ[SOURCES])
    state = Path(os.environ["PAGE_STATE"])
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    root, names = Path(given.get("data_root", "data")), given.get("dataset", "").split(",")
    for card in (sources / "program" / "datasets").rglob("*.yaml"):
        seen = state / f"prepared_{card.stem}"
        if card.stem in names or names == ["all"]:
            if not seen.exists():
                shutil.rmtree(root / card.stem, ignore_errors=True)
            seen.touch()
    if "--offline-from" in words:
        folder = Path(words[words.index("--offline-from") + 1])
        if not folder.exists():
            shutil.copytree(sources / "downloads", folder)
    copy = f"imagenet_dir={sources / 'imagenet'}"
    words = [copy if word.startswith("imagenet_dir=") else word for word in words]
    os.environ["PYTHONPATH"] = str(sources / "program")
    return subprocess.run([sys.executable, "-P", "-m", "so_clip", *words]).returncode


def _execute(code: str, name: str) -> None:
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def _main_of(function: Callable[[], object]) -> int:
    """Call what ends with an exit code; return the code."""
    try:
        function()
    except SystemExit as error:
        return _code_of(error)
    return 0


def _code_of(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _is_small() -> bool:
    return os.environ.get(SMALL) == "1"


def _so_clip(arguments: list[str]) -> int:
    return python(["-m", "so_clip", *arguments])


def _torchrun(arguments: list[str]) -> int:
    """Start real processes; each gets the arguments of the small run."""
    before, words = arguments, []
    if "so_clip" in arguments and _is_small():
        place = arguments.index("so_clip") + 1
        before, words = arguments[:place], small(arguments[place:])[0]
    os.environ["PYTHONPATH"] = str(ROOT)
    return python(["-m", "torch.distributed.run", *before, *words])


def _tensorboard(arguments: list[str]) -> int:
    """Read the event files as the server would, and print what is in them."""
    return python(["-m", "tensorboard.main", "--inspect", *arguments])


def _pip(arguments: list[str]) -> int:
    """Resolve this project with pip, without the network and without an installation."""
    wanted = [word for word in arguments[1:] if not word.startswith("-")]
    if arguments[:1] != ["install"] or not wanted:
        raise SystemExit(f"pip {' '.join(arguments)}: the pages' runner knows only pip install")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in wanted:
        match = re.fullmatch(r"(\.|so[-_]clip|\S+\.whl)(?:\[([\w,-]+)\])?(==\S+)?", word)
        if match is None:
            raise SystemExit(f"pip install {word}: is not this project")
        unknown = {*(match[2] or "").split(",")} - {"", *project["optional-dependencies"]}
        if unknown:
            raise SystemExit(f"pip install {word}: there is no extra {', '.join(sorted(unknown))}")
    # Dependencies come from the network; the project itself is built here.
    flags = ["--dry-run", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *flags]
    return subprocess.run([*command, str(ROOT)]).returncode


def _make(arguments: list[str]) -> int:
    """Print the commands of a target; run those of the program, such as those of `make demo`."""
    program = shutil.which("make", path=SYSTEM_PATH)
    if program is None:
        raise SystemExit("this machine has no make")
    command = [program, "--no-print-directory", "-n", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    for line in done.stdout.splitlines():
        words = line.split()
        if words[:3] == [".venv/bin/python", "-m", "so_clip"] and not done.returncode:
            return python(words[1:])
    return done.returncode


PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "python": python,
    "python3": python,
    "so_clip": _so_clip,
    "so-clip": _so_clip,
    "torchrun": _torchrun,
    "tensorboard": _tensorboard,
    "pip": _pip,
    "make": _make,
}
SYSTEM_PATH = os.pathsep.join(("/usr/local/bin", "/usr/bin", "/bin", "/opt/homebrew/bin"))
# Programs of the system that a page may call.
SYSTEM = (
    "bash",
    "basename",
    "cat",
    "cmp",
    "cp",
    "curl",
    "cut",
    "date",
    "diff",
    "dirname",
    "du",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "nproc",
    "printf",
    "pwd",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sleep",
    "sort",
    "tail",
    "tar",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "uniq",
    "unzip",
    "wc",
    "xargs",
    "zip",
)
