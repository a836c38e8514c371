"""Hash of this package's code. Caches and checkpoints from other code are not used."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from so_clip.system.paths import PACKAGE_DIR


@cache
def code_sha256(*folders: str, package: Path = PACKAGE_DIR) -> str:
    """Return the SHA-256 of the names and contents of the Python files in folders of the package.

    Args:
        folders: such as "clip" or "data/cards", with all folders in them; "" stands for the files
            that are directly in the package.
        package: the package's folder.

    Raises:
        ValueError: there is no Python file in a folder.
    """
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted((package / folder).rglob("*.py") if folder else package.glob("*.py"))
        if not files:
            raise ValueError(f"{package / folder} holds no Python file")
        for file in files:
            digest.update(f"{file.relative_to(package)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def folders_except(excluded: Iterable[str]) -> list[str]:
    """Return the package's folders for `code_sha256`, except some; "" is one of them."""
    folders = {file.relative_to(PACKAGE_DIR).parts[0] for file in PACKAGE_DIR.glob("*/**/*.py")}
    return ["", *sorted(folders.difference(excluded))]
