"""What a user can choose of a preparation."""

from dataclasses import dataclass, field
from pathlib import Path

from so_clip.prepare.download import Patience


@dataclass(frozen=True)
class Options:
    """Where datasets go, and where they come from.

    Attributes:
        data_root: the folder of all datasets; it is made.
        offline_from: a folder of archives, or one archive; then the network is left alone.
        imagenet_dir: an existing copy of ImageNet.
        keep_archives: leave downloaded archives below `data_root`/.prepare.
        max_unpacked_gib: the most that the files of one source may unpack to.
        repair: fetch damaged files again: a split file that cannot be used, images that
            cannot be decoded. ImageNet's are never touched.
        patience: of downloads.
    """

    data_root: Path
    offline_from: Path | None = None
    imagenet_dir: Path | None = None
    keep_archives: bool = False
    max_unpacked_gib: float = 200.0
    repair: bool = False
    patience: Patience = field(default_factory=Patience)
