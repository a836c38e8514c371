"""Checks of the user's own configuration folders, before Hydra reads them.

Hydra takes the first file of a name that it finds. It would ignore the user's file, without a
message, if the program has one of that name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from so_clip.checks import path
from so_clip.data.cards.card import card_names
from so_clip.errors import InputError
from so_clip.system.commands import command
from so_clip.system.paths import CONF_DIR

CONFIG_DIR = "--config-dir"


def check_config_folders(folders: Mapping[str, str], shipped: Sequence[Path] = (CONF_DIR,)) -> None:
    """Raise InputError for a folder that is missing, is a run, or has files that Hydra ignores.

    Args:
        folders: by their flags, --config-path and --config-dir.
        shipped: the program's folders that Hydra reads before them.
    """
    for flag, text in folders.items():
        if "://" in text:  # a package, which Hydra finds
            continue
        folder = path(flag, text)
        if not folder.is_dir():
            raise InputError(f"{flag} {folder}: there is no such folder.")
        _check_no_run(flag, folder)
    if "://" not in folders.get(CONFIG_DIR, "://"):
        _check_names(path(CONFIG_DIR, folders[CONFIG_DIR]), shipped)


def _check_no_run(flag: str, folder: Path) -> None:
    from so_clip.config.recorded import FROM, is_run_folder

    if (folder / "config.yaml").exists() and is_run_folder(folder):
        raise InputError(
            f"{flag} {folder}: is the folder of a run. Its config.yaml is a record that Hydra does "
            f"not read. To repeat the run: {command(FROM, folder)}"
        )


def _check_names(folder: Path, shipped: Sequence[Path]) -> None:
    names = {file.relative_to(top) for top in shipped for file in top.rglob("*.yaml")}
    names |= {Path("dataset", f"{name}.yaml") for name in card_names()}
    for file in sorted(folder.rglob("*.yaml")):
        if file.relative_to(folder) in names:
            raise InputError(
                f"{CONFIG_DIR} {folder}: {file.relative_to(folder)} is a file of the program too, "
                "which Hydra would read in place of yours. Give yours another name."
            )
