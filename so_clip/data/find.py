"""From what a run calls its dataset to card and lists, published or one's own."""

from dataclasses import dataclass, replace
from pathlib import Path

from so_clip.checks import path
from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, check_trainable, load_card
from so_clip.data.examples import Splits
from so_clip.data.lists.splits import load_splits
from so_clip.data.user.dataset import UserData, read_own, user_name
from so_clip.data.user.prompt_file import is_prompt_file, read_prompt_file
from so_clip.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """A dataset as it was found: its card, its lists, where its images lie, and what is to note."""

    card: DatasetCard
    splits: Splits
    root: Path | None
    notes: tuple[str, ...] = ()


def find_dataset(
    name: str,
    data_root: Path | None,
    split_file: Path | None = None,
    own: UserData | None = None,
    template: str = "plain",
    trains: bool = False,
) -> Dataset:
    """Find a dataset's card and lists, and the prompts of a file if `template` names one.

    Args:
        name: of a card; where there is `own`, the name that it shall have. See also `user_dataset`.
        data_root, split_file: see load_splits.
        own: one's own images.
        template: the run's setting.
        trains: refuse a dataset that has test images alone before its lists are looked for.

    Raises:
        InputError: no such dataset, or files that are missing or malformed.
    """
    if own is None:
        target = user_dataset(name, data_root)
        if target is not None:
            name, own = target
    if own is None:
        card = load_card(name)
        if trains:
            check_trainable(card)
        found = Dataset(card, load_splits(card, data_root, split_file), data_root)
    else:
        card, splits, listing = read_own(own, name)
        found = Dataset(card, splits, own.folder, tuple(listing.notes))
    return _with_prompts(found, template)


def find_card(
    name: str, data_root: Path | None, own: UserData | None = None, template: str = "plain"
) -> DatasetCard:
    """Return a card for what needs no lists: class names, templates, sizes.

    That of one's own images is made from the listing, and so are sizes.

    Raises:
        InputError: as find_dataset.
    """
    if own is not None or user_dataset(name, data_root) is not None:
        return find_dataset(name, data_root, own=own, template=template).card
    card = load_card(name)
    lists = Splits([], [], [], list(card.class_names))
    return _with_prompts(Dataset(card, lists, data_root), template).card


def user_dataset(name: str, data_root: Path | None) -> tuple[str, UserData] | None:
    """Return name and options of one's own images among datasets to test on; None for a card's.

    They are called LAYOUT:FOLDER, such as folder:/home/me/flowers, or LAYOUT where `data_root` is
    the folder.

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
