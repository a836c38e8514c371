"""The options that choose a run's data: dataset, few-shot draw, protocol, prompts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator

from so_clip.checks import OptionalPathOption, Options, PathOption, number, option, unicode_text
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.cards.card import USER_LAYOUTS, known_cards
from so_clip.data.imbalance import LEAST_ALPHA, MOST_ALPHA
from so_clip.data.user.dataset import UserData
from so_clip.data.user.prompt_file import is_prompt_file
from so_clip.errors import InputError, nearest

TEMPLATES = ("plain", "specific", "ensemble")
# What torch's generators take.
MAX_SEED = 2**63 - 1
# More than any dataset has. A typing error must not fill the memory with repeated images.
MAX_SHOTS = 10_000
# All tasks are drawn before the first one begins.
MAX_TASKS = 100_000


def _template(value: Any) -> str:
    is_text = isinstance(value, str) and (value.count("{}") == 1 or is_prompt_file(value))
    if value not in TEMPLATES and not is_text:
        raise InputError(
            f"template={value}: must be plain, specific, ensemble, a text with one {{}} for "
            "the class name, or a file of templates or class descriptions (.txt, .json, .yaml)."
        )
    return unicode_text("template", value)


TemplateOption = Annotated[str, BeforeValidator(_template)]


class RunData(Options):
    """The dataset and the draw of one run, of any kind."""

    dataset: str
    shots: int
    seed: int = option(
        1, "chooses the few-shot images and every other random draw of the run", ge=0, le=MAX_SEED
    )


class DataChoice(RunData):
    """Dataset, few-shot draw, test sets and prompts of one run.

    Attributes:
        dataset: the name of a card, or the name of the user's own images.
        user_data: how the user's own images are found. None for a dataset with a card.
        split_file: read in place of the dataset's own split file.
    """

    user_data: UserData | None = None
    split_file: OptionalPathOption = option(None, changes_results=False)
    shots: int = option(4, "training images per class", ge=1, le=MAX_SHOTS)
    split_protocol: Literal["clip_lora", "coop"] = option(
        "clip_lora", "clip_lora (draws val, then train; SO uses it too) | coop (train, then val)"
    )
    protocol: Literal["all", "base_to_new"] = option(
        "all", "all | base_to_new (train on the first half of the classes, test each half)"
    )
    imbalance: float | None = option(
        None, "null | the alpha of a Dirichlet draw that gives classes unequal numbers of images"
    )
    tasks: int = option(
        0,
        "0: one run on all classes | N: that many sampled few-shot tasks (episodes.*)",
        ge=0,
        le=MAX_TASKS,
    )
    cards_dir: OptionalPathOption = option(
        None,
        "null | a folder of your own dataset cards (NAME.yaml each), for dataset= and transfer=",
        changes_results=False,
    )
    transfer: tuple[str, ...] = option(
        [], "other datasets to test on after training, such as [dtd,imagenet_v2]"
    )
    template: TemplateOption = option(
        "plain",
        'plain ("a photo of a {}.") | specific (the dataset\'s) | ensemble | a text with one {} | '
        "a file of templates or class descriptions",
    )
    on_corrupt: Literal["raise", "skip"] = option(
        "raise",
        "raise | skip (leave out images that cannot be decoded; skipped.csv names them)",
        changes_results=False,
    )
    data_root: PathOption = option(
        "data", "folder that holds the datasets, each in CoOp's layout", changes_results=False
    )

    @field_validator("transfer", mode="before")
    @classmethod
    def _check_transfer(cls, value: Any, info: ValidationInfo) -> tuple[str, ...]:
        """Return the names sorted, because their order does not matter."""
        if not isinstance(value, (list, tuple)):
            raise InputError(
                f"transfer={value}: must be a list of datasets, such as [dtd,imagenet_v2]."
            )
        known = known_cards(info.data.get("cards_dir")) if value else []
        for name in value:
            if name not in known and str(name).partition(":")[0] not in USER_LAYOUTS:
                raise InputError(
                    f"transfer={name}: there is no dataset of that name."
                    f"{nearest(str(name), known)} Known: {', '.join(known)}; your own images are "
                    "folder:FOLDER or csv:FOLDER."
                )
            is_own = name == info.data.get("dataset", "")
            if is_own or value.count(name) > 1:
                where = "the run's own dataset" if is_own else "there twice"
                raise InputError(f"transfer={value}: {name} is {where}. Leave it out.")
        return tuple(sorted(value))

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, value: int) -> int:
        if value == 1:
            raise InputError(
                "tasks=1: a 95 % interval needs two tasks or more. Give tasks=600, or leave tasks "
                "out for one run on all classes."
            )
        return value

    @field_validator("imbalance", mode="before")
    @classmethod
    def _check_imbalance(cls, value: Any) -> float | None:
        if value is None:
            return None
        alpha = number("imbalance", value)
        if not LEAST_ALPHA <= alpha <= MOST_ALPHA:
            raise InputError(
                f"imbalance={value}: must be from {LEAST_ALPHA:g} (very uneven) to {MOST_ALPHA:g} "
                "(even), or null."
            )
        return alpha

    @property
    def base_to_new(self) -> bool:
        """Whether the run trains on the first half of the classes and tests each half."""
        return self.protocol == BASE_TO_NEW
