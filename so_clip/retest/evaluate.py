"""A saved adapter on test images: predictions, scores and a record, as a run has them."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from so_clip.adapters.file import SavedAdapter
from so_clip.adapters.finished import finish_model, open_changed
from so_clip.adapters.restore import load_base
from so_clip.build import assemble_model
from so_clip.clip.engine.half_weights import NAME as HALF_WEIGHTS
from so_clip.clip.loading.architecture_names import file_name
from so_clip.clip.pixels import named_preprocessing, preprocessing_from, unusual_pixels
from so_clip.config.resolve import resolved
from so_clip.data.run_data import TEST, Data, TestSet
from so_clip.errors import InputError
from so_clip.evaluate.build import build_evaluator
from so_clip.evaluate.evaluator import Evaluator
from so_clip.evaluate.outcome import Outcome, write_outcomes
from so_clip.fingerprint import DIGITS, Base, contents_sha256, run_fingerprint
from so_clip.methods.model import Model
from so_clip.metrics import Adaptation, run_metrics, write_provenance
from so_clip.results.logits_file import Keeps, logits_file, logits_kept
from so_clip.results.run_files import ADAPTER_FROM
from so_clip.results.run_folder import RunFolder
from so_clip.results.scores import ADAPTED
from so_clip.results.summary import summary_rows, summary_table
from so_clip.retest.prompts import Classes, match_classes
from so_clip.retest.settings import Chosen
from so_clip.run import Result
from so_clip.runtime.device import pick_device
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.train import History

FINISHED = "finished before: skipped. force=true repeats it."
# The stop reason of an evaluation.
NOT_TRAINED = "evaluation"
# Keys of a run's metrics about its training, which an evaluation does not have.
_TRAINING_KEYS = (
    *("fewshot_sha256", "training_images_streamed", "final_loss"),
    *("trainable_parameters", "changed_parameters", "adapter_mib"),
    *("trained_matrices", "sampled_matrices", "whole_gradients"),
)
# Characters of a dataset's name in a folder's name.
_SHOWN_NAME = 40
BASE_OPTION = "backbone.checkpoint=FILE"


def evaluate(
    adapter: SavedAdapter, adapter_sha256: str, source: Path, chosen: Chosen, data: Data
) -> Result:
    """Test an adapter and write the folder of the evaluation, unless that is done.

    Bad input is found before the folder is created.

    Args:
        adapter: as open_saved returns it.
        adapter_sha256: of its file.
        source: the run folder or the file, as the user named it.
        chosen: the settings.
        data: of the test images, with no few-shot draw.

    Raises:
        InputError: a value or file of the user cannot be used.
        RunBusy: another process is doing this evaluation.
    """
    classes = match_classes(
        adapter.about, replace(chosen, settings=resolved(chosen.settings)), data
    )
    work = Evaluation(adapter, adapter_sha256, source, classes)
    settings, folder = classes.settings, RunFolder(work.folder)
    with folder.claimed():
        keeps = settings.evaluation.keep_logits is True
        demanded = (logits_file(),) if keeps else ()
        metrics = None if settings.placement.force else folder.finished(work.fingerprint, demanded)
        if metrics is not None:
            return Result(folder.path, metrics, skipped=True)
        return Result(folder.path, work.do(folder))


class Evaluation:
    """One evaluation of a saved adapter.

    Args:
        adapter, adapter_sha256, source: see `evaluate`.
        classes: settings, test sets and prompts.
    """

    def __init__(
        self, adapter: SavedAdapter, adapter_sha256: str, source: Path, classes: Classes
    ) -> None:
        self.adapter, self.adapter_sha256, self.source = adapter, adapter_sha256, source
        self.classes, self.settings, self.data = classes, classes.settings, classes.data
        self.fingerprint = self._fingerprint()

    @property
    def folder(self) -> Path:
        """The folder. Its name says what was tested, and what the adapter was trained on."""
        settings, about, tested_on = self.settings, self.adapter.about, self.data.tested_on
        choice = settings.data
        backbone = file_name(settings.backbone.architecture)
        start = "evaluation" if tested_on == TEST else f"evaluation_{tested_on}"
        parts = [start, choice.dataset, backbone, settings.method.name]
        if about.dataset != choice.dataset:
            trained_on = re.sub(r"[^\w-]+", "_", about.dataset)[:_SHOWN_NAME]
            parts.append(f"from_{trained_on or about.kind}")
        if settings.adapts:
            parts += [f"{choice.shots}shot", f"seed{choice.seed}"]
        name = "-".join([*parts, self.fingerprint[:DIGITS]])
        return settings.placement.results_dir / name

    def do(self, folder: RunFolder) -> dict[str, Any]:
        """Measure both models, write all files, and return the content of metrics.json."""
        settings, data, test_sets = self.settings, self.data, self.classes.test_sets
        progress = folder.watched(0)
        model = self._model()
        evaluators = {
            test_set.name: build_evaluator(
                settings, test_set, model, test_set.name in self.classes.other
            )
            for test_set in test_sets
        }
        keeps = {test_set.name: self._keeps(test_set) for test_set in test_sets}
        for evaluator in evaluators.values():
            evaluator.tick = progress.tick
        zero_shot = {
            name: evaluator.zero_shot(keeps[name].zero_shot)
            for name, evaluator in evaluators.items()
        }
        finish_model(model, self.adapter)
        adapted = {
            name: evaluator.adapted(keeps[name].adapted) for name, evaluator in evaluators.items()
        }
        memory = _memory(evaluators[""], model)
        folder.start(settings.record() | self._names(), None)
        outcomes = [
            Outcome(test_set, zero_shot[test_set.name], adapted[test_set.name])
            for test_set in test_sets
        ]
        scores = write_outcomes(
            outcomes,
            folder,
            fingerprint=self.fingerprint,
            temperatures=self._temperatures(),
            calibrated_on=self._calibrated_on(),
        )
        write_provenance(
            folder,
            data,
            model.classifier.backbone,
            device=model.device,
            weights_sha256=model.weights_sha256,
            fingerprint=self.fingerprint,
            adapter_run_fingerprint=self.adapter.about.run_fingerprint,
            overrides=[],  # no sweep has such a job
            **self._names(),
        )
        metrics = run_metrics(
            settings,
            data,
            model,
            scores=scores,
            adaptation=Adaptation(History(stop_reason=NOT_TRAINED), 0.0, 0),
            evaluators=evaluators,
            memory=memory,
            fingerprint=self.fingerprint,
        )
        metrics = {key: metrics[key] for key in metrics if key not in _TRAINING_KEYS}
        metrics |= self._names() | {
            "trained_on": self.adapter.about.dataset,
            "temperature": self._temperatures().get(ADAPTED),
            "calibrated_on": self._calibrated_on(),
        }
        folder.finish(metrics, summary(metrics, folder.path))
        return metrics

    def _model(self) -> Model:
        """Return the base with the method's modules, before the adapter's tensors are in it."""
        settings, adapter = self.settings, self.adapter
        if settings.method.adapter is None and settings.placement.precision == HALF_WEIGHTS:
            raise InputError(
                f"precision={HALF_WEIGHTS}: {adapter.place} names no method, and only methods can "
                "keep some weights in float32. Use precision=fp16."
            )
        choice = settings.backbone
        base = load_base(adapter, choice.checkpoint, BASE_OPTION, place=choice.architecture)
        model = assemble_model(
            settings,
            base,
            self.classes.trained,
            pick_device(settings.placement.device),
            base.weights_sha256,
            # The adapter's file has all that the method took from files of its own.
            check=lambda method, classifier: None,
        )
        open_changed(model, adapter)
        return model

    def _fingerprint(self) -> str:
        contents = contents_sha256(self.data, self.settings.data.template)
        known = self.adapter.about.base
        if known.pixels is None:
            preprocessing = named_preprocessing(known.architecture, known.pretrained)
        else:
            preprocessing = preprocessing_from(known.preprocessing, self.adapter.place)
        pixels = unusual_pixels(preprocessing, known.architecture)
        base = Base(known.weights_sha256, pixels, known.logit_scale)
        values = {
            "settings": run_fingerprint(self.settings, contents, base),
            "adapter": self.adapter_sha256,
            "tested_on": self.data.tested_on,
            "columns": [test_set.columns for test_set in self.classes.test_sets],
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _names(self) -> dict[str, Any]:
        """Return what names the adapter, in config.yaml and metrics.json."""
        return {
            ADAPTER_FROM: str(self.source),
            "adapter_sha256": self.adapter_sha256,
            "tested_on": self.data.tested_on,
        }

    def _keeps(self, test_set: TestSet) -> Keeps:
        """Return the models whose logits are kept."""
        splits, option = test_set.splits, self.settings.evaluation.keep_logits
        return logits_kept(option, len(splits.test), 0, len(splits.class_names), adapts=True)

    def _temperatures(self) -> dict[str, float | None]:
        """Return the adapter's temperature. It holds for the classes that it was fitted on."""
        return {} if self.classes.other else {ADAPTED: self.adapter.about.temperature}

    def _calibrated_on(self) -> int:
        return 0 if self.classes.other else self.adapter.about.calibrated_on


def _memory(evaluator: Evaluator, model: Model) -> dict[str, float]:
    """Return the peak memory of the adapted model on the first batch, as a zero-shot run does."""
    peak_memory = PeakMemory(model.classifier, None, model.device)
    with evaluator.adapted_classes():
        evaluator.watch(peak_memory)
    return peak_memory.result()


def trained_as(metrics: dict[str, Any]) -> str:
    """Return what an evaluated adapter was trained on, such as "SO, 4 shots of dtd, seed 1"."""
    place = metrics["trained_on"] or "other weights"
    if not metrics["shots"]:
        return f"{metrics['method_title']} ({place})"
    shots = f"{metrics['shots']} shot{'s' if metrics['shots'] > 1 else ''}"
    return f"{metrics['method_title']}, {shots} of {place}, seed {metrics['seed']}"


def summary(metrics: dict[str, Any], folder: Path) -> str:
    """Return the scores of an evaluation as a small table for people."""
    images = f"{metrics['test_images']} {metrics['tested_on']} images of {metrics['dataset']}"
    return summary_table(
        {
            "adapter": trained_as(metrics),
            "tested on": images,
            **summary_rows(metrics),
            "peak memory": f"{metrics['peak_memory_mib']:.1f} MiB",
            "run folder": str(folder),
        }
    )
