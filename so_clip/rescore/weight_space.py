"""WiSE-FT curves in weight space: they need the model and the test images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from so_clip.checks import number
from so_clip.errors import InputError
from so_clip.rescore.kept_runs import KeptRun

if TYPE_CHECKING:
    from so_clip.adapters import SavedAdapter
    from so_clip.config.settings import Settings
    from so_clip.data.run_data import Data

FLAG = "--wise-ft"


@dataclass(frozen=True)
class WeightSpace:
    """What weight-space curves are computed with.

    Attributes:
        weights: the shares of the adapted model, from 0 to 1.
        data_root: the folder of all datasets; None: the one that the run names.
        device: auto | cpu | cuda | cuda:N | mps.
    """

    weights: tuple[float, ...]
    data_root: Path | None = None
    device: str = "auto"

    def accuracies(self, run: KeptRun) -> Iterator[tuple[str, float, float]]:
        """Yield test set, weight a, and the accuracy in percent of W_base + a (W_adapted - W_base).

        Weights 0 and 1 are the run's two models and are not computed again.

        Args:
            run: with a saved adapter that changes CLIP's own weights.

        Raises:
            InputError: the run has no such adapter, or its test images are not there or differ.

        Source: Wortsman et al., Robust fine-tuning of zero-shot models, arXiv 2109.01903.
        """
        from so_clip.adapters import open_saved, scale
        from so_clip.data.run_data import gather

        adapter, _ = open_saved(run.folder)
        scale(adapter, 1)  # refuses an adapter that adds modules, before the images are read
        settings = _settings(run.folder, self.data_root)
        data = gather(
            settings.data,
            cache_dir=settings.evaluation.cache_dir,
            workers=settings.evaluation.workers,
        )
        _check_images(run, data)
        for weight in self.weights:
            if 0 < weight < 1:
                scaled = scale(adapter, weight)
                for test_set, accuracy in self._classified(run, scaled, settings, data):
                    yield test_set, weight, accuracy

    def _classified(
        self, run: KeptRun, adapter: "SavedAdapter", settings: "Settings", data: "Data"
    ) -> Iterator[tuple[str, float]]:
        from so_clip.adapters import restore
        from so_clip.evaluate.build import build_evaluators
        from so_clip.methods.model import Model

        restored = restore(adapter, folder=run.folder, device=self.device)
        model = Model(
            restored.classifier,
            None,
            {},
            restored.device,
            restored.precision,
            adapter.about.base.weights_sha256,
        )
        for name, evaluator in build_evaluators(settings, data, model).items():
            if name in run.test_sets:
                yield name, evaluator.adapted().accuracy_percent


def parsed_weights(text: str) -> tuple[float, ...]:
    """Return the weights of `--wise-ft 0,0.5,1`, sorted, each once.

    Raises:
        InputError: one is no number from 0 to 1.
    """
    weights = []
    for word in text.split(","):
        try:
            weight = number(FLAG, float(word))
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1:
            raise InputError(
                f"{FLAG} {text}: {word!r} is no number from 0 to 1. Give weights such as 0,0.5,1."
            )
        weights.append(weight)
    return tuple(sorted(set(weights)))


def _settings(folder: Path, data_root: Path | None) -> "Settings":
    """Return the settings of a run without its method: only test images are read."""
    from so_clip.config.compose import compose
    from so_clip.config.parse import from_config
    from so_clip.config.recorded import repeating
    from so_clip.config.resolve import resolved
    from so_clip.system.commands import override

    given = ["method=zero_shot"]
    if data_root is not None:
        given.append(override("data_root", data_root))
    return resolved(from_config(compose(repeating(folder, given))))


def _check_images(run: KeptRun, data: "Data") -> None:
    from so_clip.evaluate.outcome import images_sha256

    found = {test_set.name: images_sha256(test_set) for test_set in data.test_sets}
    for name in run.test_sets:
        if found.get(name) != run.read(name).images_sha256:
            raise InputError(
                f"{run.folder}: its test images of {name or run.metrics['dataset']} are not those "
                f"below data_root now. Give the folder that the run used with --data-root."
            )
