"""The state of one dataset, and the place of all datasets."""

from dataclasses import dataclass, field
from pathlib import Path

from so_clip.system.commands import override

STATES = WHOLE, FAULTY, ABSENT = "whole", "faulty", "absent"


@dataclass(frozen=True)
class Place:
    """The folder of all datasets, and that of the user's cards if there is one."""

    root: Path
    cards_dir: Path | None = None

    @property
    def options(self) -> list[str]:
        """The options that name both, for commands."""
        named = {"data_root": self.root, "cards_dir": self.cards_dir}
        return [override(name, folder) for name, folder in named.items() if folder is not None]


@dataclass
class Diagnosis:
    """The state of one dataset.

    Attributes:
        name: the dataset's name.
        state: `WHOLE`, `FAULTY` or `ABSENT`.
        folder: its folder, existing or expected; None for images in a package.
        images: the number of images in its lists; 0 for sentences.
        decoded: the number of decoded images.
        faults: one sentence per fault.
        notes: one sentence per fact that is not a fault.
        remedy: the one command that repairs it; "" if nothing is wrong, or no command repairs it.
        bad_images: the fault of each image that a run would refuse, by path.
        run_words: the words that choose it for a run; [] for dataset=NAME.
    """

    name: str
    state: str
    folder: Path | None
    images: int = 0
    decoded: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remedy: str = ""
    bad_images: dict[str, str] = field(default_factory=dict)
    run_words: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return all attributes as JSON values."""
        values = vars(self).copy()
        return values | {"folder": None if self.folder is None else str(self.folder)}
