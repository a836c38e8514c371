"""Find a dataset's card and lists by its name: a published dataset or a user's own images."""

from dataclasses import dataclass, replace
from pathlib import Path

from so_clip.checks import path
from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, check_trainable, load_card
from so_clip.data.examples import Splits
from so_clip.data.lists.splits import load_splits
from so_clip.data.user.class_names import pairs_text
from so_clip.data.user.dataset import UserData, read_user_data, user_name
from so_clip.data.user.prompt_file import is_prompt_file, read_prompt_file
from so_clip.errors import InputError

# A run shows some names of a list; the doctor shows them all.
_SHOWN_PAIRS = 6


@dataclass(frozen=True)
class Dataset:
    """A dataset: its card, its lists, the root folder of its images, and notes for the user."""

    card: DatasetCard
    splits: Splits
    root: Path | None
    notes: tuple[str, ...] = ()


def find_dataset(
    name: str,
    data_root: Path | None,
    split_file: Path | None = None,
    user: UserData | None = None,
    template: str = "plain",
    trains: bool = False,
    cards_dir: Path | None = None,
) -> Dataset:
    """Find a dataset's card and lists, and read the prompts if `template` names a file.

    Args:
        name: the name of a card; with `user`, the name to give. See also `user_dataset`.
        data_root, split_file: see load_splits.
        user: a user's own images.
        template: the run's setting.
        trains: refuse a dataset that has only test images, before its lists are read.
        cards_dir: a folder of the user's own cards.

    Raises:
        InputError: no such dataset, or files that are missing or malformed.
    """
    if user is None and (found_user := user_dataset(name, data_root)) is not None:
        name, user = found_user
    if user is None:
        card = replace(load_card(name, cards_dir), data_root=data_root)
        if trains:
            check_trainable(card)
        splits = load_splits(card, data_root, split_file)
        if card.user_file is not None:
            splits = replace(splits, read_from=(*splits.read_from, card.user_file))
        found = Dataset(card, splits, data_root)
    else:
        card, splits, listing = read_user_data(user, name)
        notes = [*listing.notes]
        if listing.pairs:
            pairs = pairs_text(listing.pairs, _SHOWN_PAIRS)
            notes.append(f"{user.class_names} names the classes by position: {pairs}")
        found = Dataset(card, splits, user.folder, tuple(notes))
    return _with_prompts(found, template)


def find_card(
    name: str,
    data_root: Path | None,
    user: UserData | None = None,
    template: str = "plain",
    cards_dir: Path | None = None,
) -> DatasetCard:
    """Return a dataset's card, for class names, templates and sizes, without its lists.

    The card of a user's own images is made from the listing.

    Raises:
        InputError: as find_dataset.
    """
    if user is not None or user_dataset(name, data_root) is not None:
        return find_dataset(name, data_root, user=user, template=template).card
    card = load_card(name, cards_dir)
    lists = Splits([], [], [], list(card.class_names))
    return _with_prompts(Dataset(card, lists, data_root), template).card


def user_dataset(name: str, data_root: Path | None) -> tuple[str, UserData] | None:
    """Return name and options of a user's own images to test on; None for the name of a card.

    Their name is LAYOUT:FOLDER, such as folder:/home/me/flowers, or LAYOUT if `data_root` is the
    folder.

    Raises:
        InputError: there is no folder.
    """
    layout, _, folder = name.partition(":")
    if layout not in USER_LAYOUTS:
        return None
    if not folder and data_root is None:
        raise InputError(f"{name}: needs a folder, such as {layout}:FOLDER.")
    place = path(layout, folder) if folder else data_root
    assert place is not None
    return user_name(layout, place), UserData(layout, place)


def _with_prompts(found: Dataset, template: str) -> Dataset:
    if not is_prompt_file(template):
        return found
    prompts = read_prompt_file(path("template", template))
    names, card = found.splits.class_names, found.card
    keys = card.class_folders if len(card.class_folders) == len(names) else ()
    described = prompts.of(names, keys)
    if described is None:
        card = replace(card, template_files={template: prompts.templates})
    else:
        card = replace(card, descriptions=described)
    splits = replace(found.splits, read_from=(*found.splits.read_from, prompts.file))
    return replace(found, card=card, splits=splits)
