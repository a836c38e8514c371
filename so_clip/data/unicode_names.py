"""Names in Unicode's two forms: macOS writes é as two characters (NFD), others as one (NFC)."""

import os
import unicodedata
from pathlib import Path


def composed(text: str) -> str:
    """Return text in Unicode's composed form (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class DiskNames:
    """Finds files whose names a list has in the other Unicode form than the disk.

    Args:
        root: the folder of the files.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str:
        """Return the path below the root as the disk has it; the same path if there is no file."""
        if path.isascii() or os.path.lexists(f"{self._root}/{path}"):
            return path
        found = ""
        for name in path.split("/"):
            same = name if name.isascii() else self._names(found).get(composed(name), name)
            found = f"{found}/{same}" if found else same
        return found if os.path.lexists(f"{self._root}/{found}") else path

    def _names(self, folder: str) -> dict[str, str]:
        """Return the names in a folder by their composed form."""
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(f"{self._root}/{folder}"))  # noqa: PTH208
            except OSError:
                names = []
            self._listed[folder] = {composed(name): name for name in names}
        return self._listed[folder]
