"""The classes of an evaluation: those of training, some of them, or others."""

from dataclasses import dataclass, replace

from so_clip.adapters.about import About
from so_clip.clip.prompts import Prompts, chosen_prompts
from so_clip.config.settings import Settings
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.run_data import Data, TestSet
from so_clip.errors import InputError
from so_clip.retest.settings import Chosen

# The value of `template` for the prompts in the adapter file.
ADAPTER_PROMPTS = "adapter"


@dataclass(frozen=True)
class Classes:
    """The test sets of an evaluation, and the prompts that their classes have.

    Attributes:
        settings: of the evaluation, with the template of its prompts.
        data: of the evaluation.
        test_sets: of `data`; the labels of some training classes are their `columns`.
        trained: the prompts of the training classes, which the classifier is built with.
        other: the names of the test sets whose prompts the classifier is not built with.
    """

    settings: Settings
    data: Data
    test_sets: tuple[TestSet, ...]
    trained: Prompts
    other: frozenset[str]


def match_classes(about: About, chosen: Chosen, data: Data) -> Classes:
    """Match the classes of the test sets to those of training.

    Raises:
        InputError: the method cannot classify the classes, or they have no prompts.
    """
    chosen, data = _with_prompts(about, chosen, data)
    own, *others = data.test_sets
    prompts = _prompts(chosen, data)
    trained = about.prompts() if about.class_names else prompts
    other = {test_set.name for test_set in others}
    if (trained.texts, trained.per_class) != (prompts.texts, prompts.per_class):
        columns = None if chosen.has_template else _columns(about, own)
        own = replace(own, columns=columns)
        if columns is None:
            other.add(own.name)
    if about.class_bound and other:
        raise InputError(_bound(about, chosen, other))
    return Classes(chosen.settings, data, (own, *others), trained, frozenset(other))


def _with_prompts(about: About, chosen: Chosen, data: Data) -> tuple[Chosen, Data]:
    """Take the prompts from the adapter file, unless an option of the run or the user has them."""
    same = not data.others and tuple(data.splits.class_names) == about.class_names
    if chosen.has_template or (chosen.knows_template and not same):
        return chosen, data
    if chosen.knows_template and _prompts(chosen, data).texts == about.prompts().texts:
        return chosen, data
    if not same and about.descriptions is not None:
        raise InputError(
            f"dataset={data.splits.dataset}: its classes are not those of training, which have "
            "descriptions of their own. Give the prompts with template=FILE, or template=plain."
        )
    if not about.templates and about.descriptions is None:
        return chosen, data
    settings = chosen.settings
    choice = settings.data.model_copy(update={"template": ADAPTER_PROMPTS})
    settings = settings.model_copy(update={"data": choice})
    card = replace(data.card, template_files={ADAPTER_PROMPTS: about.templates}, descriptions=None)
    if about.descriptions is not None:
        described = dict(zip(about.class_names, about.descriptions, strict=True))
        card = replace(card, descriptions=described)
    others = tuple(replace(test_set, card=card) for test_set in data.others)
    return replace(chosen, settings=settings), replace(data, card=card, others=others)


def _prompts(chosen: Chosen, data: Data) -> Prompts:
    """Return the prompts of the own test set, as the settings choose them."""
    return chosen_prompts(chosen.settings.data.template, data.splits.class_names, data.card)


def _columns(about: About, test_set: TestSet) -> tuple[int, ...] | None:
    """Return the training labels of the test classes, if they are some of the training classes."""
    labels, card = test_set.splits.parent_labels, test_set.card
    is_relative = card.classes_of is not None and card.classes_of == about.dataset
    if not is_relative or about.settings.get("protocol") == BASE_TO_NEW:
        return None
    fits = labels and max(labels) < len(about.class_names)
    return tuple(labels) if fits else None


def _bound(about: About, chosen: Chosen, other: set[str]) -> str:
    choice = chosen.settings.data
    option = f"dataset={choice.dataset}"
    if chosen.has_template:
        option = f"template={choice.template}"
    elif other - {""}:
        option = f"protocol={BASE_TO_NEW}"
    return (
        f"{option}: what method={about.method} trained belongs to the {len(about.class_names)} "
        f"classes and prompts of {about.dataset}, and cannot classify others. Leave {option} out, "
        "or take an adapter of another method."
    )
