"""The walls between the folders of the package, read from the imports of all modules."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter

import pytest

from so_clip.system.paths import PACKAGE_DIR
from tests.helpers.command import ROOT, python

# The folders and root modules, in order. Each imports only those below it in this list.
ROOMS = (
    "__main__",
    "cli",
    "backbones",
    "forecast",
    "rescore",
    "report",
    "status",
    "prepare",
    "sweep",
    "api",
    "predict",
    "retest",
    "meta",
    "tasks",
    "sentences",
    "run",
    "adaptation",
    "export",
    "adapters",
    "metrics",
    "train",
    "checkpoint",
    "build",
    "fingerprint",
    "evaluate",
    "capture",
    "encoder",
    "methods",
    "smat",
    "config",
    "clip",
    "runtime",
    "optim",
    "results",
    "data",
    "checks",
    "system",
    "errors",
    "escape",
    "version",
)
PATH_OF_A_RUN = {"run", "metrics", "train", "checkpoint", "build", "fingerprint"}
WITHOUT_TORCH = (
    "config",
    "results",
    "rescore",
    "system",
    "status",
    "sweep",
    "cli",
    "data.cards",
    "data.episodes",
    "data.lists",
    "data.sentences",
    "data.user",
)
MAX_ROOT_MODULES = 13


@cache
def modules() -> dict[str, set[str]]:
    """Return the modules of the package below `so_clip.`, with the modules that each imports."""
    files = {
        ".".join(file.relative_to(PACKAGE_DIR).with_suffix("").parts): file
        for file in PACKAGE_DIR.rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): file for name, file in files.items()}
    return {name: imported(file.read_text(), names) for name, file in names.items()}


def imported(text: str, names: dict[str, object]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("so_clip"):
            package = str(node.module).removeprefix("so_clip").removeprefix(".")
            for alias in node.names:
                whole = f"{package}.{alias.name}".removeprefix(".")
                found.add(whole if whole in names else package)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("so_clip.") for alias in node.names} & {*names}
    return found - {"", "__init__"}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_folder_and_root_module_is_in_the_list():
    assert {room(module) for module in modules()} == {*ROOMS, "__init__"}


@pytest.mark.parametrize("name", ROOMS)
def test_imports_go_only_down_the_list(name):
    below = {name, *ROOMS[ROOMS.index(name) + 1 :]}
    for module, targets in modules().items():
        if room(module) == name:
            assert {room(target) for target in targets} <= below, module


def test_there_is_no_import_circle():
    TopologicalSorter(modules()).prepare()  # raises CycleError


def test_adapters_and_optimizers_never_know_each_other():
    by_room = defaultdict(set)
    for module, targets in modules().items():
        by_room[room(module)] |= {room(target) for target in targets}
    assert not by_room["methods"] & {"optim", "config"}
    assert not by_room["optim"] & {"methods", "clip", "config"}


def test_no_folder_below_the_path_of_a_run_imports_it():
    last = max(ROOMS.index(name) for name in PATH_OF_A_RUN)
    for module, targets in modules().items():
        if room(module) in ROOMS[last + 1 :]:
            assert not {room(target) for target in targets} & PATH_OF_A_RUN, module


def test_the_root_holds_the_path_of_a_run_and_little_else():
    assert len([name for name in modules() if "." not in name and is_file(name)]) + 1 <= (
        MAX_ROOT_MODULES
    )


def is_file(name: str) -> bool:
    return (PACKAGE_DIR / f"{name}.py").exists()


def test_config_results_system_and_lists_import_without_torch():
    chosen = [
        f"so_clip.{module}"
        for module in modules()
        if f"{module}.".startswith(tuple(f"{name}." for name in WITHOUT_TORCH))
        and module != "config.resolve"
    ]
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    assert python(f"{code}print('torch' in sys.modules)", *chosen).strip() == "False"


def test_no_test_imports_from_a_conftest():
    """Pytest would keep two of an imported fixture, and a process can have one browser only."""
    for file in (ROOT / "tests").rglob("*.py"):
        sources = [
            n.module or ""
            for n in ast.walk(ast.parse(file.read_text()))
            if isinstance(n, ast.ImportFrom)
        ]
        assert not [source for source in sources if source.endswith("conftest")], file
