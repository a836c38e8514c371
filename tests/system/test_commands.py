"""A printed command means the same to the shell, to Hydra and to the program."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from so_clip.system.commands import command, override
from tests.helpers.command import shell_words
from tests.helpers.odd_paths import ODD_NAMES

TEXTS = [
    *ODD_NAMES,
    *("", " ", "null", "None", "True", "nan", "-inf", "1", "007", ".5", "1e3", "-1", "~x", ".."),
    *("/a/b", "a:b", "a;b", "a&b", "#a", "@", "!", "*", "`a`", "(a)", "a\tb", "日本", "\u202ea"),
    *("\\", "a\\\\", "\\'", "a\\'b", "${", "${x}", "\\${x}", "\\\\${x}\\", "'", '"', "\\\n"),
]  # fmt: skip


def test_every_text_comes_back_through_the_shell_and_hydra():
    words = shell_words(command(*(override("key", text) for text in TEXTS)))
    parser = OverridesParser.create()
    read = [
        OmegaConf.create({"key": parser.parse_override(word).value()}).key for word in words[2:]
    ]
    assert read == TEXTS


@pytest.mark.parametrize("value", [None, True, 3, 1e-5, ["a b", None, 1.5], {"x": "1", "y": [2]}])
def test_other_values_keep_their_types(value):
    (word,) = shell_words(command(override("key", value)))[2:]
    assert OverridesParser.create().parse_override(word).value() == value
