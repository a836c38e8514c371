"""The identity of a run on sentences: one SHA-256 over everything that can change its result."""

from pathlib import Path

from so_clip.config.sentence_settings import NO_DIFFERENCE, SentenceSettings
from so_clip.data.sentences.read import SentenceData
from so_clip.fingerprint import DIGITS, Base, identity, sha256_of, without_options


def contents_sha256(data: SentenceData) -> str:
    """Return the SHA-256 of the sentences, the draw and the class names of a run."""
    return sha256_of([data.contents_sha256, data.draw_json(), [*data.card.label_names]])


def settings_sha256(settings: SentenceSettings) -> str:
    """Return the SHA-256 of all choices that can change the result."""
    values = without_options(settings.record(), NO_DIFFERENCE)
    del values["model"]["source"]  # its weights count by their content
    return sha256_of(values)


def sentence_fingerprint(settings: SentenceSettings, data: SentenceData, base: Base) -> str:
    """Return the SHA-256 of options, sentences and weights.

    Args:
        settings: with `auto` resolved, because its meaning depends on the machine.
        data: of the run.
        base: the encoder as loaded.
    """
    return identity(settings_sha256(settings), None, contents_sha256(data), base)


def sentence_run_dir(settings: SentenceSettings, fingerprint: str) -> Path:
    """Return a run's folder. The start of its name is readable, the end is unique."""
    data = settings.data
    parts = [data.dataset, settings.model.name, settings.method.name]
    parts += [f"{data.shots}shots-in-all", f"seed{data.seed}"]
    return settings.placement.results_dir / "-".join([*parts, fingerprint[:DIGITS]])
