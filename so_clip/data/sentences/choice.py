"""The options that choose the data of a run on sentences: dataset and draw."""

from typing import Literal

from so_clip.checks import OptionalPathOption, PathOption, option
from so_clip.data.choice import MAX_SEED, MAX_SHOTS, RunData


class SentenceChoice(RunData):
    """Dataset, few-shot draw and tested pairs of one run on sentences.

    Attributes:
        dataset: the name of a card of sentences.
    """

    shots: int = option(32, "training examples, in all", ge=1, le=MAX_SHOTS)
    subset: Literal["balanced", "official"] = option(
        "balanced",
        "balanced (shots/K of each of K classes) | official (any shots examples, as SO's code)",
    )
    seed: int = option(
        1, "chooses the examples and every other random draw of the run", ge=0, le=MAX_SEED
    )
    split: Literal["validation", "leftover"] = option(
        "validation",
        "validation | leftover (tests as many training examples that are not drawn, for choosing "
        "options; tables leave such runs out)",
    )
    data_root: PathOption = option("data", "folder that holds the datasets", changes_results=False)
    cards_dir: OptionalPathOption = option(
        None,
        "null | a folder of your own cards of sentences (NAME.yaml each)",
        changes_results=False,
    )
