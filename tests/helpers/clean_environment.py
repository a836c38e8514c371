"""A new environment that holds a package's declared dependencies and nothing else.

Downloading torch would take minutes and GB, so the files of the dependencies are links to those
of the environment that runs the tests. pip sees them as installed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def clean_variables() -> dict[str, str]:
    """Return the environment without variables of Python and pip, and without pip's settings."""
    clean = {key: value for key, value in os.environ.items() if not re.match("PYTHON|PIP_", key)}
    return clean | {"OMP_NUM_THREADS": "1", "PIP_CONFIG_FILE": os.devnull}


def do(*command: object, cwd: Path | None = None, **variables: str) -> str:
    """Run a command without variables that lead to the checkout or an index; return its output."""
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=clean_variables() | variables,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new_environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with pip and the dependencies of `wheel`; return its bin folder."""
    do(sys.executable, "-m", "venv", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in top_level(wheel):
        link = site / name.name
        if not link.exists():  # two distributions can share a folder (nvidia)
            link.symlink_to(name)
    return folder / "bin"


def top_level(wheel: Path) -> Iterator[Path]:
    """Yield the files and folders in site-packages of all that `wheel` requires."""
    for found in installed(requirements(wheel)).values():
        names = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}
        yield from (Path(str(found.locate_file(name))) for name in sorted(names))


def requirements(wheel: Path) -> list[Requirement]:
    """Return what a wheel requires, extras included."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return [*map(Requirement, metadata.get_all("Requires-Dist", []))]


def installed(required: Iterable[Requirement]) -> dict[str, Distribution]:
    """Return the installed distributions that fulfil requirements without extras, and theirs."""
    found: dict[str, Distribution] = {}
    waiting = [(requirement, frozenset({""})) for requirement in required]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        wanted = frozenset({"", *requirement.extras})
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # pip will say that it is missing
            continue
        waiting += [(Requirement(text), wanted) for text in found[name].requires or ()]
    return found
