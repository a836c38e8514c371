"""The settings of an evaluation: those of the adapter's run, with other test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.adapters.file import SavedAdapter
from so_clip.checks import optional_path
from so_clip.clip.loading.architecture_names import FOLDER
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.recorded import options_of_record, recorded_options
from so_clip.config.settings import PIXEL_OPTIONS, Settings
from so_clip.data.cards.card import known_cards
from so_clip.data.user.prompt_file import is_prompt_file
from so_clip.errors import InputError

# The option that says where a base in a folder is.
ARCHITECTURE = "backbone.architecture"
# Titles of adapters that no run has made.
_TITLES = {"merge": "Merged adapters", "scale": "Scaled adapter", "diff": "Changed weights"}
# What an adapter file says about its training. It counts more than a config.yaml beside it.
_TRAINING = (
    *("adapter", "optimizer", "schedule", "augment", "method"),
    *("shots", "seed", "split_protocol", "imbalance"),
)
# The recorded options that say where the images are.
_IMAGES = ("dataset", "user_data", "split_file")


@dataclass(frozen=True)
class Chosen:
    """What to test an adapter on.

    Attributes:
        settings: of the adapter's run, with the options that were given.
        has_template: whether the user chose the prompts.
        knows_template: whether the settings hold the template of the run.
    """

    settings: Settings
    has_template: bool
    knows_template: bool


def chosen_settings(
    adapter: SavedAdapter,
    place: Path,
    folder: Path | None,
    given: Sequence[str],
    config_dir: Path | None = None,
) -> Chosen:
    """Return the settings of an evaluation.

    Args:
        adapter: as open_saved returns it.
        place: the run folder or file, as the user named it.
        folder: of the adapter's run; None for a single file.
        given: OPTION=VALUE. They replace the options of the run.
        config_dir: the user's own configuration folder; None: there is none.

    Raises:
        InputError: an option cannot be used, or the images of a file's dataset are not known here.
    """
    names = {word.partition("=")[0].lstrip("+~") for word in given}
    record = _record(adapter, folder)
    _check_base(adapter, record, place, ARCHITECTURE in names)
    if "dataset" in names:
        record = {name: value for name, value in record.items() if name not in _IMAGES}
    elif folder is None:
        _check_dataset(adapter, place, given)
    options = options_of_record(record, given, place, config_dir)
    settings = from_config(compose(options, config_dir))
    return Chosen(settings, "template" in names, "template" in record)


def _record(adapter: SavedAdapter, folder: Path | None) -> dict[str, Any]:
    """Return the options of the adapter's run, as its config.yaml or its file has them."""
    about, known = adapter.about, adapter.about.settings
    if folder is None:
        record = known | {"dataset": about.dataset, "method_title": about.method_title}
    else:
        record = recorded_options(folder, "RUN")
        record |= {name: known[name] for name in _TRAINING if name in known}
    backbone = record.get("backbone") if folder else None
    recorded = backbone if isinstance(backbone, dict) else {}
    architecture = about.base.architecture
    if architecture.startswith(FOLDER):  # the file has no path of the folder
        architecture = str(recorded.get("architecture", FOLDER))
    record["backbone"] = {
        "architecture": architecture,
        "pretrained": about.base.pretrained,
        "checkpoint": recorded.get("checkpoint"),
        "logit_scale": about.base.logit_scale,
        **{name: recorded[name] for name in PIXEL_OPTIONS if name in recorded},
    }
    record["transfer"] = []
    template = record.get("template")
    if is_prompt_file(template or "") and not Path(str(template)).expanduser().is_file():
        del record["template"]
    if about.kind != "run":
        record |= {"method": about.kind, "method_title": _TITLES[about.kind]}
        record |= {"adapter": None, "optimizer": None}
    elif not record.get("method_title"):
        record["method_title"] = about.method
    return record


def _check_base(adapter: SavedAdapter, record: dict[str, Any], place: Path, given: bool) -> None:
    """Refuse a base in a folder that nothing names, and an architecture that cannot be chosen."""
    base = adapter.about.base.architecture
    is_folder = base.startswith(FOLDER)
    if given and not is_folder:
        raise InputError(f"{ARCHITECTURE}: {place} belongs to {base} alone. Leave the option out.")
    if is_folder and not given and record["backbone"]["architecture"] == FOLDER:
        raise InputError(
            f"{place}: its base is {base}, and the file does not say where this folder is. Give "
            f"{ARCHITECTURE}={FOLDER}PATH."
        )


def _check_dataset(adapter: SavedAdapter, place: Path, given: Sequence[str]) -> None:
    """Refuse a file whose dataset is not a published one: nothing says where its images are."""
    dataset = adapter.about.dataset
    composed = compose([word for word in given if word.startswith("cards_dir=")])
    if dataset not in known_cards(optional_path("cards_dir", composed["cards_dir"])):
        named = dataset[:80] or "a dataset that it does not name"
        raise InputError(
            f"{place}: was trained on {named}, and the file does not say where these images are. "
            "Give dataset=NAME, or dataset=folder or dataset=csv with data_root=FOLDER."
        )
