"""Runs on sentences in this process: a tiny random encoder and a small made dataset."""

from collections.abc import Sequence
from pathlib import Path

from so_clip.config.compose import compose
from so_clip.config.sentence_parse import sentence_settings
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.config.trees import SENTENCES
from so_clip.data.sentences.read import SentenceData, gather_sentences
from so_clip.run import Result
from so_clip.sentences.run import run_sentences
from so_clip.system.commands import override
from tests.helpers.made_sentences import files_of, rows
from tests.helpers.tiny_encoders import encoder_folder


def places(folder: Path, family: str = "bert") -> list[str]:
    """Write an encoder and a dataset; return the options that choose them, and few short steps."""
    model = encoder_folder(folder / family, family)
    made = files_of("tsv", rows(40), rows(11, start=100))
    for name, content in made.items():
        file = folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return [
        "model=folder",
        override("model.source", f"folder:{model}"),
        "model.max_length=32",
        override("data_root", folder / "data"),
        override("results_dir", folder / "runs"),
        *("shots=8", "schedule.batch_size=4", "schedule.max_steps=4", "schedule.stop_loss=0"),
        *("device=cpu", "optimizer.lr=1e-2"),
    ]


def settings_of(words: Sequence[str]) -> SentenceSettings:
    """Return the settings that the words of a command choose."""
    return sentence_settings(compose(words, tree=SENTENCES))


def data_of(settings: SentenceSettings) -> SentenceData:
    """Read the dataset of the settings."""
    return gather_sentences(settings.data)


def do_run(words: Sequence[str]) -> Result:
    """Do the run that the words of a command choose."""
    settings = settings_of(words)
    return run_sentences(settings, data_of(settings))
