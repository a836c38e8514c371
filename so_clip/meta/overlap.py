"""Find datasets that share images, whatever their names are."""

import os

from so_clip.data.examples import Splits
from so_clip.data.images import ImageFolder, ImageSource
from so_clip.data.unicode_names import composed

# A copy has the same paths below another folder. At most this many images are compared.
_COMPARED_IMAGES = 8


class ImageSet:
    """All images of a dataset, to compare with those of another one.

    Args:
        splits: the dataset's lists.
        images: where its images are.
    """

    def __init__(self, splits: Splits, images: ImageSource) -> None:
        self._images = images
        self._paths = {composed(path): path for path, _ in splits.examples}
        self._root: str | None = None
        if isinstance(images, ImageFolder):
            self._root = os.path.realpath(images.root)  # resolves links and never raises

    def shared_image(self, other: "ImageSet") -> str | None:
        """Return an image of both datasets; None if they share none.

        An image of both is the same file, also if one dataset's folder is inside the other's. Or it
        has the same path and content in both folders: one is a copy of the other.
        """
        return self._shared_file(other) or other._shared_file(self) or self._shared_copy(other)

    def _shared_file(self, inner: "ImageSet") -> str | None:
        """Return a shared file, if the folder of `inner` is this folder or inside it."""
        if self._root is None or inner._root is None:
            return None
        if not f"{inner._root}{os.sep}".startswith(f"{self._root.rstrip(os.sep)}{os.sep}"):
            return None
        below = os.path.relpath(inner._root, self._root).replace(os.sep, "/")
        start = "" if below == "." else f"{composed(below)}/"
        return min(self._paths.keys() & {f"{start}{path}" for path in inner._paths}, default=None)

    def _shared_copy(self, other: "ImageSet") -> str | None:
        same = sorted(self._paths.keys() & other._paths.keys())
        for path in same[:: max(1, len(same) // _COMPARED_IMAGES)][:_COMPARED_IMAGES]:
            mine, theirs = self._paths[path], other._paths[path]
            missing = self._images.missing([mine]) or other._images.missing([theirs])
            if not missing and self._images.content(mine) == other._images.content(theirs):
                return path
        return None
