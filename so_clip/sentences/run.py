"""One run on sentences, top to bottom: data, encoder, adapt, evaluate, record."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from so_clip.adaptation.adapting import Adapting
from so_clip.adaptation.records import FolderRecords
from so_clip.config.resolve import resolved_placement
from so_clip.config.sentence_settings import MODEL_FOLDER, SentenceSettings
from so_clip.data.sentence_batches import SentenceBatches
from so_clip.data.sentences.read import SentenceData
from so_clip.encoder.encoder import SentenceEncoder
from so_clip.errors import InputError
from so_clip.methods.adapter import FewShots
from so_clip.methods.model import Model
from so_clip.results.provenance import provenance
from so_clip.results.run_files import PER_CLASS_FILE, PREDICTIONS_FILE
from so_clip.results.run_folder import RunFolder
from so_clip.results.scores import per_class
from so_clip.run import Result, in_its_folder, summary
from so_clip.runtime.device import describe
from so_clip.sentences.build import (
    TokenizedData,
    base_of,
    build_evaluator,
    build_model,
    encoder_of,
    tokenized,
    train_batches,
)
from so_clip.sentences.identity import sentence_fingerprint, sentence_run_dir
from so_clip.sentences.known import KnownEncoders
from so_clip.sentences.metrics import prediction_columns, sentence_metrics
from so_clip.train import TrainingDiverged
from so_clip.version import RESULTS_VERSION

MIB = 2**20


def run_sentences(
    settings: SentenceSettings,
    data: SentenceData,
    *,
    overrides: Sequence[str] = (),
    keep_refusals: bool = False,
    known: KnownEncoders | None = None,
    encoder: SentenceEncoder | None = None,
) -> Result:
    """Do one run on sentences and write its folder, unless the run is finished.

    Bad input is found before the folder is created.

    Args:
        settings, data: of the run.
        overrides, keep_refusals: see RunFolder.claimed.
        known: encoders of earlier runs of this process. This run adds its own.
        encoder: that of the settings, loaded already. The run changes it. None: it is loaded.

    Raises:
        InputError: a value or file of the user cannot be used.
        RunBusy: another process is running this configuration.
        TrainingDiverged: a loss is not finite. The folder keeps what was recorded.
    """
    settings = resolved_placement(settings)
    model = build_model(settings, data, encoder)
    tokens = tokenized(settings, data, encoder_of(model))
    base = base_of(model)
    if known is not None:
        known.remember(settings, data, base)
    fingerprint = sentence_fingerprint(settings, data, base)

    def work(folder: RunFolder) -> dict[str, Any]:
        return SentenceRun(settings, data, model, tokens, folder, fingerprint).do()

    return in_its_folder(
        settings,
        RunFolder(sentence_run_dir(settings, fingerprint)),
        fingerprint,
        work,
        overrides=overrides,
        keep_refusals=keep_refusals,
    )


class SentenceRun(Adapting):
    """The state of one run on sentences.

    Args:
        settings: with `auto` resolved.
        data: of the run.
        model: as loaded, with its parameters opened.
        tokens: the examples as token ids.
        folder: of the run, where all files go.
        fingerprint: of the run.
    """

    settings: SentenceSettings

    def __init__(
        self,
        settings: SentenceSettings,
        data: SentenceData,
        model: Model,
        tokens: TokenizedData,
        folder: RunFolder,
        fingerprint: str,
    ) -> None:
        self.data, self.tokens = data, tokens
        self.folder, self.fingerprint = folder, fingerprint
        batches = train_batches(settings, data, tokens.train, model)
        # The adapted model is saved as a folder of transformers, and not as changes of the base.
        placement = settings.placement.model_copy(update={"save": False})
        records = FolderRecords(model, folder, fingerprint, placement, writes=True)
        super().__init__(settings, model, batches, records)

    def few_shots(self, batches: Any) -> FewShots:
        """Return the training examples without embeddings, which are CLIP's."""
        return _Labels(batches)

    def do(self) -> dict[str, Any]:
        """Adapt, evaluate, and return the content of metrics.json."""
        settings, model, folder, data = self.settings, self.model, self.folder, self.data
        progress = folder.watched(settings.schedule.max_steps)
        evaluator = build_evaluator(settings, data, self.tokens.test, model)
        evaluator.tick = progress.tick
        folder.start(settings.record(), data.draw_json())
        try:
            adaptation = self.adapt(progress, evaluator)
        except TrainingDiverged:
            self._write_provenance()
            raise
        columns = prediction_columns(data, evaluator.adapted().checked())
        folder.write_columns(PREDICTIONS_FILE, columns)
        folder.write_columns(PER_CLASS_FILE, per_class(columns, data.card.label_names))
        saved_mib = self._save_model() if settings.placement.save is True else None
        self._write_provenance()
        metrics = sentence_metrics(
            settings,
            data,
            model,
            columns=columns,
            tokens=self.tokens,
            adaptation=adaptation,
            evaluate_seconds=evaluator.seconds,
            memory=self.peak_memory.result(),
            fingerprint=self.fingerprint,
            optimizer=self.optimizer,
            saved_mib=saved_mib,
        )
        folder.finish(metrics, summary(metrics, folder.path))
        return metrics

    def _save_model(self) -> float:
        """Write the adapted encoder as a folder of transformers; return its size in MiB."""
        assert self.model.adapter is not None
        self.folder.check_in_place()
        self.model.adapter.merge(self.model.classifier)
        place = self.folder.path / MODEL_FOLDER
        encoder_of(self.model).save(place, self.data.card.label_names)
        return sum(file.stat().st_size for file in place.iterdir()) / MIB

    def _write_provenance(self) -> None:
        self.folder.write_provenance(
            provenance(
                describe(self.model.device),
                backbone=self.model.classifier.backbone.description,
                backbone_weights_sha256=self.model.weights_sha256,
                files=[str(file) for file in self.data.files],
                results_version=RESULTS_VERSION,
                run_fingerprint=self.fingerprint,
                overrides=self.folder.overrides,
            )
        )


class _Labels:
    """The training examples, for an adapter's `start`."""

    def __init__(self, batches: SentenceBatches) -> None:
        self._batches = batches

    @property
    def labels_N(self) -> Tensor:
        """Labels, int64, on the device."""
        return self._batches.labels_N.to(self._batches.device)

    def encode(self, views: int = 0) -> Tensor:
        """Refuse: embeddings of examples are those of CLIP's images."""
        raise InputError(
            "the adapter reads embeddings of images, and a run on sentences has none. Use an "
            "adapter that trains an encoder's own weights, such as adapter=weights."
        )
