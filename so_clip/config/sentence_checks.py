"""Checks of a run on sentences that need no torch."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from so_clip.checks import check_names, optional_path
from so_clip.config.compose import choices
from so_clip.config.kinds import SENTENCE_ADAPTERS
from so_clip.config.parse import targets_of
from so_clip.config.sentence_settings import HEAD, ModelChoice, SentencePlacement, SentenceSettings
from so_clip.data.cards.card import USER_LAYOUTS, known_cards
from so_clip.data.sentences.card import known_sentence_cards
from so_clip.errors import InputError, nearest
from so_clip.optim.options import check_steps
from so_clip.results.writable import check_writable
from so_clip.system.commands import command, install, override
from so_clip.system.torchrun import processes

# The extra with transformers and with the encoder of model=minilm.
_EXTRA = "so-clip[text]"


def check_schedule(config: DictConfig) -> None:
    """Refuse a schedule of images, before its epochs are counted in images of a dataset."""
    schedule = config.get("schedule")
    if OmegaConf.is_dict(schedule) and "crops" in schedule:
        raise InputError(
            "schedule.crops: belongs to the schedules of images. Leave out schedule=NAME; options "
            "such as schedule.max_steps=N change the schedule of sentences."
        )


def check_dataset(values: Any, cards_dir: Any) -> str:
    """Return the name of the dataset that the group `dataset` chooses, if it has sentences."""
    name = values.get("name") if isinstance(values, Mapping) else values
    folder = optional_path("cards_dir", cards_dir)
    known = known_sentence_cards(folder)
    if name in known:
        if isinstance(values, Mapping):
            check_names(values, ["name"], "dataset.")
        return str(name)
    layout = values.get("layout") if isinstance(values, Mapping) else None
    if layout in USER_LAYOUTS or name in known_cards(None):
        chosen = override("dataset", layout or name)
        raise InputError(
            f"{chosen}: is a dataset of images, and this is a run on sentences. Choose dataset="
            f"{' or '.join(known)}; a run on images is {command(chosen)}"
        )
    raise InputError(
        f"dataset={name}: there is no dataset of sentences of that name."
        f"{nearest(str(name), known)} Known: {', '.join(known)}."
    )


def check_model(choice: ModelChoice) -> None:
    """Refuse another model under a name of conf/, because tables would show that name."""
    for file in choices("model"):
        if file.stem != choice.name:
            continue
        named: Any = OmegaConf.load(file)
        if named.source != choice.source:
            raise InputError(
                f"model.source={choice.source}: model.name={choice.name} stands for "
                f"{named.source}. Add "
                "model=folder, or a name of its own: model.name=NAME."
            )


def check_method(settings: SentenceSettings) -> None:
    """Refuse a method that needs CLIP, that trains nothing, or whose options do not fit it."""
    method, schedule = settings.method, settings.schedule
    adapter, optimizer = method.adapter, method.optimizer
    if adapter is not None and adapter.name in targets_of("adapter"):
        if adapter.target not in SENTENCE_ADAPTERS:
            raise InputError(
                f"method={method.name}: adapter={adapter.name} needs CLIP: its prompts, its two "
                "towers or its features. On sentences choose a method that changes weights, such "
                "as so, adamw, lora or bitfit."
            )
        if adapter.options.get("encoder") == "vision":
            raise InputError(
                "adapter.encoder=vision: an encoder of sentences has no image tower. Leave it out."
            )
    if adapter is None or optimizer is None:
        raise InputError(
            f"method={method.name}: trains nothing, and the head of the encoder is new and "
            "random. Choose method=head to train the head alone."
        )
    if adapter.name == HEAD and settings.dense_rest is False:
        raise InputError(
            f"dense_rest=false: method={method.name} trains the head alone, and with dense_rest="
            "false there is nothing to train. Leave dense_rest out."
        )
    _check_dense_bias_correction(settings)
    if schedule.max_steps < 1:
        raise InputError(
            f"schedule.max_steps={schedule.max_steps}: the head of the encoder is new, and "
            "needs at least one step."
        )
    check_steps(method.name, optimizer.options["lr"], schedule.lr_min, schedule.max_steps)


def _check_dense_bias_correction(settings: SentenceSettings) -> None:
    optimizer = settings.method.optimizer
    if settings.dense_bias_correction != "twice":
        return
    if optimizer is not None and "density_ratio" not in optimizer.options:
        raise InputError(
            f"dense_bias_correction=twice with optimizer={optimizer.name}: is an option of SO's "
            "dense weights. Choose optimizer=so, or leave it out."
        )
    if settings.dense_rest is False:
        raise InputError(
            "dense_bias_correction=twice with dense_rest=false: there are no dense weights. Leave "
            "out one of the two."
        )


def check_graph(placement: SentencePlacement) -> None:
    """Refuse a CUDA graph: it repeats a step on tensors of one size."""
    if placement.graph is True:
        raise InputError(
            "graph=true: a graph needs batches of one length, and batches of sentences may have "
            "different lengths. Leave graph out."
        )


def check_text_packages() -> None:
    """Raise InputError if the packages that read sentences are not installed."""
    for package in ("transformers", "tokenizers"):
        if find_spec(package) is None:
            raise InputError(
                f"a run on sentences needs the package {package}, and it is not installed: "
                f"{install(_EXTRA)}"
            )


def check_place(settings: SentenceSettings) -> None:
    """Raise InputError if the results cannot be where the settings say, or under torchrun."""
    check_writable(settings.placement.results_dir)
    if processes() > 1:
        raise InputError(
            f"torchrun: starts {processes()} processes, and a run on sentences takes one. Leave "
            "out torchrun."
        )
