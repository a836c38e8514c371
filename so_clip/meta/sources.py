"""The datasets of a meta-training, opened and checked before any training."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path

from so_clip.clip.prompts import Prompts, chosen_prompts
from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, how_to_get, load_card
from so_clip.data.examples import Splits
from so_clip.data.find import find_dataset, user_dataset
from so_clip.data.images import ImageSource, open_images
from so_clip.errors import MAX_MESSAGE, InputError, note, without_middle
from so_clip.meta.overlap import ImageSet

# The lists that the images of source tasks, and of target tasks, come from.
SOURCE_LISTS, TARGET_LISTS = ("train",), ("train", "test")


@dataclass(frozen=True)
class Source:
    """An opened dataset: a source to train on, or a target to test on.

    Attributes:
        name: unique among the sources, and among the targets.
        card, splits, images: its card, its lists, and where its images are.
    """

    name: str
    card: DatasetCard
    splits: Splits
    images: ImageSource

    def prompts(self, template: str) -> Prompts:
        """Return the prompts of all classes; InputError if the card has no such templates."""
        try:
            return chosen_prompts(template, self.splits.class_names, self.card)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error


def open_datasets(
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    data_root: Path,
    cards_dir: Path | None,
    template: str = "plain",
    allow_overlap: bool = False,
) -> tuple[list[Source], list[Source]]:
    """Open all sources and targets of a meta-training, and check that their images are there.

    Args:
        sources, targets: names of cards, or LAYOUT:FOLDER for a user's own images, such as
            folder:/home/me/flowers.
        data_root, cards_dir, template: see find_dataset.
        allow_overlap: see check_disjoint.

    Raises:
        InputError: about every dataset that cannot be used, or about sources among the targets.
    """
    opener = partial(_open, data_root=data_root, cards_dir=cards_dir, template=template)
    problems: dict[str, str] = {}
    opened_sources = _open_all(sources, "sources", SOURCE_LISTS, opener, problems)
    opened_targets = _open_all(targets, "targets", TARGET_LISTS, opener, problems)
    _refuse(problems)
    _check_names(
        dict(zip((source.name for source in opened_sources), sources, strict=True)),
        dict(zip((target.name for target in opened_targets), targets, strict=True)),
    )
    check_disjoint(opened_sources, opened_targets, allow_overlap)
    return opened_sources, opened_targets


def check_disjoint(
    sources: Sequence[Source], targets: Sequence[Source], allow_overlap: bool
) -> None:
    """Refuse datasets that share images, under the same name or under two.

    Two datasets of other images may share classes, such as imagenet and imagenet_v2.

    Args:
        sources, targets: opened datasets.
        allow_overlap: whether a target may share images with a source. Two sources, or two
            targets, never share images.

    Raises:
        InputError: about all pairs that share images.
    """
    sets = {id(opened): ImageSet(opened.splits, opened.images) for opened in (*sources, *targets)}
    pairs = [
        ("sources", "Leave one out.", [*combinations(sources, 2)]),
        ("targets", "Leave one out.", [*combinations(targets, 2)]),
    ]
    if not allow_overlap:
        way_out = (
            "The test of a target would know its images: leave it out of sources or targets, or "
            "add allow_overlap=true."
        )
        pairs.append(("sources and targets", way_out, [*product(sources, targets)]))
    problems = []
    for option, way_out, both in pairs:
        for first, second in both:
            if (shared := sets[id(first)].shared_image(sets[id(second)])) is not None:
                one_name = first.name == second.name
                which = first.name if one_name else f"{first.name} and {second.name}"
                verb = "is in both" if one_name else "share images"
                problems.append(f"{option}: {which} {verb}, such as {shared}. {way_out}")
    if problems:
        raise InputError("\n".join(problems))


def _open_all(
    names: Sequence[str],
    option: str,
    lists: Sequence[str],
    opener: Callable[[str, Sequence[str]], Source],
    problems: dict[str, str],
) -> list[Source]:
    """Open the datasets. Those that cannot be used are added to `problems` with the reason."""
    opened = []
    for name in names:
        try:
            opened.append(opener(name, lists))
        except InputError as error:
            problems[f"{option}={name}"] = str(error)
    for name, count in Counter(source.name for source in opened).items():
        if count > 1:
            problems[f"{option}={name}"] = (
                "the name is there twice. Give it once."
                if name in names
                else f"{count} folders have this name. Rename all but one."
            )
    return opened


def _open(
    name: str, lists: Sequence[str], data_root: Path, cards_dir: Path | None, template: str
) -> Source:
    if user_dataset(name, data_root) is None and load_card(name, cards_dir).test_only:
        raise InputError("has test images only, and tasks need training images. Leave it out.")
    found = find_dataset(name, data_root, template=template, cards_dir=cards_dir)
    card, splits = found.card, found.splits
    images = open_images(card, found.root)
    _check_images(images, splits, lists, card)
    for remark in found.notes:
        note(f"{card.title}: {remark}.")
    return Source(card.name, card, splits, images)


def _check_images(
    images: ImageSource, splits: Splits, lists: Sequence[str], card: DatasetCard
) -> None:
    listed = (example.path for split in lists for example in getattr(splits, split))
    paths = list(dict.fromkeys(listed))
    if missing := images.missing(paths):
        place = getattr(images, "root", card.title)
        is_users = card.layout in USER_LAYOUTS
        way_out = "Add them, or delete their lines from the list." if is_users else how_to_get(card)
        raise InputError(
            f"{place}: {len(missing)} of {len(paths)} images of {card.title} are missing, first "
            f"{missing[0]}. {way_out}"
        )


def _check_names(sources: Mapping[str, str], targets: Mapping[str, str]) -> None:
    """Refuse a source and a target of one name that are two datasets.

    Args:
        sources, targets: what the user wrote, by the names of the opened datasets.
    """
    for name in sources.keys() & targets.keys():
        if sources[name] != targets[name]:
            raise InputError(
                f"sources={sources[name]} and targets={targets[name]} are both named {name}. "
                "Rename one of the folders."
            )


def _refuse(problems: dict[str, str]) -> None:
    """Raise InputError about all datasets that cannot be used. Long reasons lose their middle."""
    if not problems:
        return
    if len(problems) == 1:
        raise InputError(*(f"{name}: {reason}" for name, reason in problems.items()))
    head = f"{len(problems)} datasets cannot be used:"
    lines = [f"{name}: {' '.join(reason.split())}" for name, reason in problems.items()]
    # Not all of this is used, because the mark in place of a middle takes some characters too.
    most = max(100, (MAX_MESSAGE - len(head)) // len(lines) - 50)
    raise InputError("\n".join((head, *(without_middle(line, most) for line in lines))))
