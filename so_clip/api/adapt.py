"""Adapt a CLIP to few-shot images, and read an adapted model back from its file."""

import gc
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from so_clip.adapters import Restored, SavedAdapter, open_saved, restore
from so_clip.adapters.about import About
from so_clip.adapters.file import save as save_adapter
from so_clip.api.clip import AUTO, Clip, check_class_names
from so_clip.api.few_shots import FewShots
from so_clip.api.images import listed
from so_clip.api.options import overrides_of, settings_of
from so_clip.checks import path as checked_path
from so_clip.config.early_checks import check_packages
from so_clip.data.run_data import Data
from so_clip.errors import InputError
from so_clip.predict.pictures import Picture
from so_clip.predict.predictions import Prediction, Predictor, evaluation_batch_size
from so_clip.results.run_files import HISTORY_FILE, read_columns
from so_clip.results.writable import check_writable
from so_clip.run import run
from so_clip.runtime.device import cpu_threads
from so_clip.system import atomic
from so_clip.system.commands import override


@dataclass(frozen=True, eq=False, repr=False)
class Adapted:
    """An adapted model: predictions, a torch module, and the adapter that made it.

    Attributes:
        restored: classifier, precision and device.
        adapter: the learned changes alone; so_clip.adapters works with it.
    """

    restored: Restored
    adapter: SavedAdapter

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.about.name}, {len(self.class_names)} classes>"

    @property
    def model(self) -> nn.Module:
        """The adapted model, frozen: uint8 images_BCHW of its image size to logits_BK."""
        return self.restored.classifier

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.restored.class_names

    @property
    def about(self) -> About:
        """The metadata of the adapter file: base, classes, method, options, temperature."""
        return self.adapter.about

    def predict(self, images: Sequence[Picture], top: int = 5) -> list[Prediction]:
        """Classify images, with the resize, precision and batches of a run's evaluation.

        Args:
            images: paths, PIL images, uint8 tensors [3, height, width], or arrays
                [height, width, 3].
            top: classes per image.

        Returns:
            One Prediction per image: `name` and `confidence` of the best class, and `names`,
            `labels` and `confidences` of the best `top` classes. Confidences are
            softmax(logits / temperature); the temperature is fitted on the validation images.

        Raises:
            InputError: an image cannot be read; the message names it.

        Example:
            >>> result.predict(["a.jpg"])[0].name
            'oak'
        """
        predictor = Predictor(
            self.restored.classifier,
            self.class_names,
            self.about.temperature,
            self.restored.precision,
            top=top,
            batch_size=evaluation_batch_size(self.about.settings),
        )
        return list(predictor.predict(listed(images)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter file, adapter.safetensors of a run; load_adapted reads it.

        Raises:
            InputError: the file cannot be written.
        """
        with atomic.output_option("another path"):
            save_adapter(self.adapter, checked_path("path", path))


@dataclass(frozen=True, eq=False, repr=False)
class Result(Adapted):
    """An adapted model with the scores of its run.

    Attributes:
        metrics: the content of metrics.json.
        losses: the training loss of each step; empty if nothing is trained.
        folder: of the run; None without results_dir.
    """

    metrics: dict[str, Any]
    losses: list[float]
    folder: Path | None = None

    def __repr__(self) -> str:
        accuracy = self.accuracy_percent
        tested = "" if accuracy is None else f": {accuracy:.2f} %"
        return f"{super().__repr__()[:-1]}{tested}>"

    @property
    def accuracy_percent(self) -> float | None:
        """Accuracy on the test images; None if there are none."""
        return self._score("accuracy_percent")

    @property
    def zero_shot_accuracy_percent(self) -> float | None:
        """The same before the adaptation; None too for a backbone without a text tower."""
        return self._score("zero_shot_accuracy_percent")

    def _score(self, name: str) -> float | None:
        value = self.metrics[name] if self.metrics["tested_on"] == "test" else None
        return None if value is None else float(value)


def adapt(
    clip: Clip,
    few: FewShots,
    method: str = "so",
    *,
    results_dir: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Adapt a copy of a CLIP to few-shot images. It is one run of the command line.

    The run evaluates, trains and evaluates again. `clip` does not change. During training there
    are two copies of the backbone, and the result keeps one.

    Args:
        clip: as `load` returns it.
        few: as `few_shot` returns it.
        method: so, clip_lora, coop, zero_shot, or another name of docs/methods/.
        results_dir: the folder of the run's folder, as on the command line; a finished run is then
            not repeated. None: no file stays.
        config_dir: a folder of your own methods, as --config-dir.
        options: all other options of the command line. A mapping holds the options below a name:
            optimizer={"T": 5}. A text chooses: optimizer="adamw".

    Returns:
        The adapted model with its scores.

    Raises:
        InputError: an argument or option cannot be used.
        RunFailed: the training diverged.

    Example:
        >>> result = so_clip.adapt(clip, few, method="so", schedule={"max_steps": 100})
        >>> print(result.zero_shot_accuracy_percent, result.accuracy_percent)
    """
    _check_arguments(clip, few, method)
    folder = None if config_dir is None else Path(config_dir).expanduser()
    overrides = [*clip.overrides, *few.overrides, override("method", method)]
    overrides += overrides_of(options)
    place: Any = nullcontext(results_dir)
    if results_dir is None:
        place = TemporaryDirectory(prefix="so_clip-")
        overrides.append(override("evaluation.cache_dir", None))
    with place as results:
        results = os.path.abspath(Path(results).expanduser())  # noqa: PTH100
        files = [override("results_dir", results), "save=true"]
        return _run(clip, few, [*overrides, *files], folder, keeps=results_dir is not None)


def _check_arguments(clip: Any, few: Any, method: Any) -> None:
    if not isinstance(clip, Clip):
        raise InputError(f"clip: is {type(clip).__name__}. Give what so_clip.load returns.")
    if not isinstance(few, FewShots):
        raise InputError(f"few: is {type(few).__name__}. Give what so_clip.few_shot returns.")
    if not isinstance(method, str):
        raise InputError(f"method={method!r}: must be a name, such as 'so'.")


def _run(
    clip: Clip, few: FewShots, overrides: list[str], config_dir: Path | None, keeps: bool
) -> Result:
    settings = settings_of(overrides, config_dir)
    check_packages(settings.method)
    check_writable(settings.placement.results_dir)
    data: Data = few.data if settings.adapts else replace(few.data, few_shot=None)
    with cpu_threads(settings.placement.threads):
        done = run(settings, data, overrides=overrides, backbone=clip.backbone.copy())
        # Sampled layers and their optimizer refer to each other, so the trained copy still exists.
        gc.collect()
        adapter = open_saved(done.folder).adapter
        restored = restore(
            adapter,
            device=clip.device,
            backbone=clip.backbone.copy(),
            config_dir=config_dir,
        )
    history = done.folder / HISTORY_FILE
    losses = read_columns(history, numbers=["loss"])["loss"].tolist() if history.exists() else []
    return Result(restored, adapter, done.metrics, losses, done.folder if keeps else None)


def load_adapted(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = AUTO,
    precision: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
) -> Adapted:
    """Read an adapted model from its file, with its base.

    Args:
        path: a file of `Result.save`, or the folder of a run.
        class_names: other classes to classify, where the method allows it. None: the run's.
        checkpoint: a local file with the base's weights. None: the published ones.
        device: auto | cpu | cuda | cuda:N | mps.
        precision: of the image tower: fp32 | bf16 | fp16; None: as in the run.
        config_dir: a folder of your own methods, as --config-dir.

    Returns:
        The model. Its logits equal those of the run.

    Raises:
        InputError: the file is damaged, the base cannot be loaded, or it has other weights.

    Example:
        >>> so_clip.load_adapted("mine.safetensors").predict(["a.jpg"])
    """
    if class_names is not None:
        check_class_names(class_names)
    adapter, folder = open_saved(checked_path("path", path))
    restored = restore(
        adapter,
        device=device,
        precision=precision,
        checkpoint=None if checkpoint is None else Path(checkpoint).expanduser(),
        folder=folder,
        class_names=class_names,
        config_dir=None if config_dir is None else Path(config_dir).expanduser(),
    )
    return Adapted(restored, adapter)
