"""Symbolic links among a user's own images."""

import os
from collections.abc import Iterable
from pathlib import Path

from so_clip.data.user.listing import Listed
from so_clip.errors import InputError


def is_below(path: str, folder: str) -> bool:
    """Return whether a real path is a folder or below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def link_outside(link: str, target: str) -> InputError:
    """Return the error for a link that leads out of the dataset."""
    return InputError(
        f"{link}: is a link to {target}, outside the dataset. Copy the images there, or add "
        "dataset.follow_links=true to follow it."
    )


def refuse_shared(root: Path, images: Iterable[tuple[Listed, str]]) -> None:
    """Refuse links that put an image into two splits or two classes.

    Args:
        root: the folder of the images, for the message.
        images: each image with the real path of its file.
    """
    seen: dict[str, Listed] = {}
    for image, real in images:
        first = seen.setdefault(real, image)
        # A draw could put the image into two splits, even within one class.
        differs = (first.key, first.split) != (image.key, image.split) or image.split is None
        if first is not image and differs:
            both = " and ".join(sorted((first.path, image.path)))
            raise InputError(f"{root}: {both} are links to one file. Remove one of them.")


class LinkCheck:
    """Checks the files of a list for links that lead out of their folder.

    Each folder is resolved once, so that a list of a million files takes one system call per file.

    Args:
        root: the folder of the files.
        follow_links: do not refuse links to places outside.
    """

    def __init__(self, root: Path, follow_links: bool) -> None:
        self._root, self._follow = str(root), follow_links
        self._real_root = os.path.realpath(root)
        self._folders: dict[str, str] = {}
        self.linked = False

    def real_path(self, path: str) -> str:
        """Return the real path of a file; InputError if a link leads out of the root."""
        folder, _, name = path.rpartition("/")
        file = f"{self._root}/{path}"
        known = self._folders.get(folder)
        if known is None:
            known = self._folders[folder] = os.path.realpath(f"{self._root}/{folder}")
            self._check(f"{self._root}/{folder}", known)
            self.linked = self.linked or known != os.path.normpath(f"{self._real_root}/{folder}")
        if not os.path.islink(file):  # noqa: PTH114 - faster, for a million images
            return f"{known}/{name}"
        self.linked = True
        real = os.path.realpath(file)
        self._check(file, real)
        return real

    def _check(self, link: str, real: str) -> None:
        if not self._follow and not is_below(real, self._real_root):
            raise link_outside(link, real)
