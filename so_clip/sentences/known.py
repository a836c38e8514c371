"""The weights of encoders that this process has loaded, to recognise finished runs of a sweep."""

from pathlib import Path

from so_clip.config.sentence_settings import SentenceSettings
from so_clip.data.sentences.read import SentenceData, gather_sentences
from so_clip.encoder.places import find_place
from so_clip.errors import InputError
from so_clip.fingerprint import Base, Key, file_state
from so_clip.sentences.identity import sentence_fingerprint, sentence_run_dir


class KnownEncoders:
    """Hashes of weights, with the size and date of the files that they were computed from."""

    def __init__(self) -> None:
        self._bases: dict[Key, Base] = {}

    def remember(self, settings: SentenceSettings, data: SentenceData, base: Base) -> None:
        """Keep the hash of a run's encoder as loaded."""
        self._bases[_key(settings, data)] = base

    def base(self, settings: SentenceSettings, data: SentenceData) -> Base | None:
        """Return the encoder of a run; None if this process has not loaded it, or it changed."""
        return self._bases.get(_key(settings, data))

    def find(self, settings: SentenceSettings) -> tuple[Path, str] | None:
        """Return a run's folder and fingerprint if its weights are known; reads its sentences."""
        if not self._bases:
            return None
        try:
            data = gather_sentences(settings.data)
            base = self.base(settings, data)
        except InputError:  # the run reports it
            return None
        if base is None:
            return None
        # A known encoder means that torch is imported already.
        from so_clip.config.resolve import resolved_placement

        settings = resolved_placement(settings)
        fingerprint = sentence_fingerprint(settings, data, base)
        return sentence_run_dir(settings, fingerprint), fingerprint


def _key(settings: SentenceSettings, data: SentenceData) -> Key:
    folder = find_place(settings.model.source, needs_files=False).folder
    files = sorted(folder.iterdir()) if folder else []
    states = tuple((file.name, file_state(file)) for file in files)
    # A classifier in the files is used only for as many classes as it has.
    return settings.model.source, len(data.card.label_names), states
