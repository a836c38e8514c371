"""The package's own code as a number: what is kept on disk goes by it, as no version follows it."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from so_clip.system.paths import PACKAGE_DIR


@cache
def code_sha256(*parts: str, package: Path = PACKAGE_DIR) -> str:
    """Return the SHA-256 of the names and contents of Python files.

    Args:
        parts: files and folders of the package, such as `clip` or `train.py`, the whole package
            if there are none.
        package: its folder.
    """
    digest = hashlib.sha256()
    for part in parts or (".",):
        for file in _files(package / part):
            digest.update(f"{file.relative_to(package)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def parts_but(others: Iterable[str]) -> list[str]:
    """Return the names of all in the package that holds Python code, but for some."""
    names = {file.relative_to(PACKAGE_DIR).parts[0] for file in PACKAGE_DIR.rglob("*.py")}
    return sorted(names.difference(others))


def _files(part: Path) -> list[Path]:
    return sorted(part.rglob("*.py")) if part.is_dir() else [part]
