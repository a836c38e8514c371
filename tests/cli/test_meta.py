"""The command that `meta` prints at its end."""

from pathlib import Path

import pytest

from so_clip.cli.meta import _next_commands
from so_clip.meta.parse import meta_settings
from so_clip.meta.run import MetaResult


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("targets=[dtd,eurosat]", "dataset=dtd,eurosat {} backbone=tiny data_root=data"),
        ("targets=[dtd,folder:birds]", "dataset=dtd {} backbone=tiny data_root=data"),
        ("targets=[folder:birds]", "dataset=folder {} backbone=tiny data_root=birds"),
    ],
)
def test_it_has_datasets_that_a_run_can_take(targets: str, words: str, tmp_path: Path) -> None:
    settings = meta_settings(["data_root=data", targets])
    words = words.format("tasks=600 episodes.varied_shots=true")
    assert words in _next_commands(settings, MetaResult(tmp_path, {}))
