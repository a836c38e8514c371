"""From a saved adapter to the classifier of its run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from so_clip.adapters.about import About, with_hash
from so_clip.adapters.apply import put_in
from so_clip.adapters.file import SavedAdapter, check_saved, load
from so_clip.checks import path as checked_path
from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.half_weights import NAME as HALF_WEIGHTS
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture_names import FOLDER, is_place
from so_clip.clip.loading.sources import CONFIG_FILE, content_sha256, place_in
from so_clip.clip.pixels import preprocessing_from, preprocessing_of
from so_clip.config.recorded import recorded_options
from so_clip.config.resolve import resolved_text_budget
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter
from so_clip.results.run_files import (
    ADAPTER_FILE,
    ADAPTER_FROM,
    KIND,
    MAX_TEXT,
    META,
    METRICS_FILE,
    read_object,
)
from so_clip.results.scores import SENTENCES
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import Precision
from so_clip.system.commands import override


class Opened(NamedTuple):
    """An adapter, and the run's folder that it was found in; None for a single file."""

    adapter: SavedAdapter
    folder: Path | None


@dataclass(frozen=True)
class Restored:
    """A classifier with an adapter in it.

    Attributes:
        classifier: frozen, on `device`; its logits are those of the run.
        about: the adapter's metadata.
        class_names: of the logits, in order.
        precision: of the image tower on test images.
        device: of the classifier.
        method: the run's method, if its own tensors are in the classifier.
    """

    classifier: Classifier
    about: About
    class_names: tuple[str, ...]
    precision: Precision
    device: torch.device
    method: Adapter | None = None


def open_saved(path: Path | str) -> Opened:
    """Read the adapter of a run's folder, or an adapter file.

    Raises:
        InputError: there is no adapter, or it is damaged.
    """
    path = checked_path("path", path)
    # Path's own tests raise an error below a folder that may not be entered.
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file or folder. Give the folder of a run, such as "
            f"results/runs/NAME, or a file {ADAPTER_FILE}."
        ) from None
    except OSError:
        pass  # load names the reason
    if not os.path.isdir(path):  # noqa: PTH112
        return Opened(load(path), None)
    file = path / ADAPTER_FILE
    if not os.access(path, os.X_OK) or os.path.lexists(file):
        return Opened(load(file), path)
    if (path / METRICS_FILE).exists():
        metrics = read_object(path / METRICS_FILE)
        if metrics.get(KIND) == META:
            raise InputError(
                f"{path}: is a meta-training, which has no classes of its own. Use its experts: "
                f"python -m so_clip method=smat {override('adapter.checkpoint', path)}"
            )
        if tasks := metrics.get("tasks"):
            raise InputError(
                f"{path}: the run adapted a model for each of {str(tasks)[:20]} sampled tasks, and "
                "kept none. Give a run without tasks."
            )
        if metrics.get("task") == SENTENCES:
            raise InputError(
                f"{path}: is a run on sentences, which writes no {ADAPTER_FILE}. With save=true it "
                "writes a folder `model`, which transformers loads, and so does another run with "
                "model=folder model.source=FOLDER."
            )
        if source := metrics.get(ADAPTER_FROM):
            raise InputError(
                f"{path}: is an evaluation, which has no adapter of its own. Give the adapter that "
                f"it names: {str(source)[:MAX_TEXT]}"
            )
        raise InputError(
            f"{path}: the run has no {ADAPTER_FILE}: it is older than this file, was too large for "
            f"save=auto, or had save=false. Repeat it: python -m so_clip --from {path} save=true"
        )
    inside = sorted(path.glob(f"*/{ADAPTER_FILE}"))
    example = inside[0].parent if inside else "results/runs/NAME"
    raise InputError(
        f"{path}: is no folder of a finished run. Give a folder such as {example}, or a file "
        f"{ADAPTER_FILE}."
    )


def restore(
    adapter: SavedAdapter,
    *,
    device: str = "auto",
    precision: str | None = None,
    checkpoint: Path | str | None = None,
    folder: Path | None = None,
    class_names: Sequence[str] | None = None,
    config_dir: Path | None = None,
    backbone: Backbone | None = None,
) -> Restored:
    """Load the adapter's base and build its run's classifier.

    On the hardware and with the threads of the run, the logits equal the run's bit for bit.

    Args:
        adapter: as `load` returns it.
        device: auto | cpu | cuda | cuda:N | mps.
        precision: of the image tower; None: as the run measured test accuracy.
        checkpoint: a local file with the base's weights. None: the published weights, or the
            checkpoint that the run in `folder` names.
        folder: of the run.
        class_names: other classes to classify. None: the run's.
        config_dir: the user's own configuration folder, if the adapter's class is named there.
        backbone: the base, loaded already and without an adapter. It becomes part of the
            classifier. None: it is loaded.

    Raises:
        InputError: the base cannot be loaded or has other weights, or the method cannot classify
            other classes.
    """
    check_saved(adapter)
    about = adapter.about
    names = about.class_names if class_names is None else tuple(class_names)
    _check_names(adapter, names)
    recorded, recorded_checkpoint = _recorded_base(folder)
    backbone = load_base(
        adapter, checkpoint or recorded_checkpoint, loaded=backbone, place=recorded
    )
    place = pick_device(device)
    used, on_cuda = about.used, place.type == "cuda"
    backbone.memory = used.memory
    own = about.prompts(None if about.class_names else names)
    classifier = Classifier(
        backbone,
        backbone.prompt_tokens(own.texts),
        resolved_text_budget(used.text_budget_mib, backbone.memory, on_cuda),
        prompts_per_class=own.per_class,
        templates=own.templates,
    ).to(place)
    image_precision = Precision(precision or about.evaluation_precision, place)
    is_half = image_precision.name == HALF_WEIGHTS
    opens = is_half and used.adapter is not None
    method = put_in(classifier, adapter, config_dir, opens)
    if is_half:
        backbone.use_half_weights()
    classifier.requires_grad_(False)
    classifier.forget_classes()
    if names != (about.class_names or names):
        other = about.prompts(names)
        classifier.use_classes(
            backbone.prompt_tokens(other.texts),
            other.templates,
            rewrite=None if method is None else method.prompts_for,
            prompts_per_class=other.per_class,
        )
    return Restored(classifier, about, names, image_precision, place, method)


def _check_names(adapter: SavedAdapter, names: tuple[str, ...]) -> None:
    about = adapter.about
    if not names:
        raise InputError(
            f"{adapter.place}: holds no class names, as an adapter made by {about.kind} may. Give "
            "the classes: --classes a,b,c, or class_names= in Python."
        )
    if about.class_bound and names != about.class_names:
        raise InputError(
            f"{adapter.place}: what {about.method} trained belongs to its "
            f"{len(about.class_names)} classes, and cannot classify others. Leave the other class "
            "names out."
        )


def load_base(
    adapter: SavedAdapter,
    checkpoint: Path | str | None,
    way_out: str = "--checkpoint FILE, or checkpoint= in Python",
    loaded: Backbone | None = None,
    place: str | None = None,
) -> Backbone:
    """Return the adapter's base.

    Args:
        adapter: as `load` returns it.
        checkpoint: a local file with its weights; None: the published weights. For a base of
            `local-dir:` also its folder.
        way_out: how the user names that file, for messages.
        loaded: the base, if it is loaded already; it is only checked.
        place: where the run had its base, if the file says only `local-dir:`.

    Raises:
        InputError: the base cannot be loaded, or has other weights.
    """
    about = adapter.about
    base = about.base
    if loaded is None and not base.architecture:
        raise InputError(
            f"{adapter.place}: does not name the architecture of its base. Make it with "
            "diff(..., architecture=NAME), or apply it to a model."
        )
    architecture = base.architecture
    if loaded is None and architecture.startswith(FOLDER):
        architecture, checkpoint = _base_folder(adapter, place, checkpoint, way_out)
    if loaded is None and base.place_sha256 not in (None, _content_of(architecture)):
        raise InputError(
            f"{adapter.place}: {architecture} has another model_cfg or another tokenizer than when "
            f"the adapter was made, so it is another model. Give the unchanged one with {way_out}."
        )
    backbone = loaded or load_backbone(
        architecture,
        base.pretrained,
        checkpoint,
        logit_scale=base.logit_scale,
        seed=about.used.seed,
        preprocessing=base.preprocessing,
    )
    if backbone.weights_sha256 == base.weights_sha256:
        if bool(backbone.architecture.get("quick_gelu")) != base.quick_gelu:
            activation = "QuickGELU" if base.quick_gelu else "GELU, not QuickGELU"
            raise InputError(
                f"{adapter.place}: its base has the activation {activation}, and "
                f"{backbone.description} has the other one. Give a checkpoint that says which, "
                "such as OpenAI's own file."
            )
        if loaded is not None and base.pixels is not None:
            _check_pixels(adapter, loaded)
        return backbone
    raise InputError(
        f"{adapter.place}: belongs to {base.shown}, and "
        f"{with_hash(backbone.description, backbone.weights_sha256)} has other weights. Give the "
        f"base's weights with {way_out}."
    )


def _content_of(architecture: str) -> str | None:
    return content_sha256(architecture) if is_place(architecture) else None


def _check_pixels(adapter: SavedAdapter, loaded: Backbone) -> None:
    recorded = preprocessing_from(adapter.about.base.preprocessing, adapter.place)
    differing = preprocessing_of(loaded).differences(recorded)
    if differing:
        given = ", ".join(f"{name}={value}" for name, value in differing.items())
        wanted = ", ".join(f"{name}={recorded.record()[name]}" for name in differing)
        raise InputError(
            f"{adapter.place}: was trained on other pixels than {loaded.description} takes, which "
            f"has {given}. Load it with {wanted}."
        )


def _recorded_base(folder: Path | None) -> tuple[str | None, str | None]:
    """Return the architecture and the checkpoint that a run's config.yaml names."""
    try:
        backbone = recorded_options(folder, "RUN").get("backbone") if folder else None
    except InputError:
        return None, None
    found = backbone if isinstance(backbone, dict) else {}
    values = [found.get(key) for key in ("architecture", "checkpoint")]
    architecture, checkpoint = (value if isinstance(value, str) else None for value in values)
    return architecture, checkpoint


def _base_folder(
    adapter: SavedAdapter, place: str | None, checkpoint: Path | str | None, way_out: str
) -> tuple[str, Path | str | None]:
    """Return a base's folder as an architecture, and the checkpoint in place of its weights."""
    if checkpoint is not None and (given := place_in(Path(checkpoint).expanduser())):
        return given, None
    if place is not None and place.startswith(FOLDER):
        return place, checkpoint
    raise InputError(
        f"{adapter.place}: its base is {adapter.about.base.architecture}, a folder with "
        f"{CONFIG_FILE}, and the file does not say where this folder is. Give the folder in place "
        f"of the file: {way_out}."
    )
