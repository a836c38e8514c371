"""Cards of sentences: the five of GLUE, the user's own, and malformed ones."""

import os
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.data.cards.card import card_names
from so_clip.data.sentences.card import (
    SENTENCE_CARDS_DIR,
    is_sentence_card,
    known_sentence_cards,
    load_sentence_card,
)
from so_clip.errors import InputError
from so_clip.prepare.sources import SENTENCES, read_sources
from tests.helpers.made_sentences import card, write_card

GLUE = {
    "cola": (8551, 1043, False),
    "mrpc": (3668, 408, True),
    "rte": (2490, 277, True),
    "sst2": (67349, 872, False),
    "wnli": (635, 71, True),
}


def test_the_cards_are_those_of_glue_and_no_cards_of_images():
    assert known_sentence_cards() == sorted(GLUE)
    assert not {*GLUE} & {*card_names()}


@pytest.mark.parametrize("name", GLUE)
def test_a_card_of_glue_has_published_sizes_and_pinned_sources(name):
    loaded = load_sentence_card(name)
    train, validation, has_pairs = GLUE[name]
    assert loaded.sizes is not None
    assert (loaded.sizes.train, loaded.sizes.validation) == (train, validation)
    assert loaded.parquet is not None
    assert (loaded.parquet.second is not None) is has_pairs
    assert len(loaded.label_names) == 2
    for source in read_sources(loaded, SENTENCES):
        for file in source.files:
            assert file.sha256 or file.md5
            if source.kind == "parquet":
                assert file.name in ("train.parquet", "validation.parquet")
            else:
                assert loaded.tsv is not None
                assert file.name == loaded.tsv.archive


def test_a_card_in_the_users_folder_is_found_beside_cards_of_images(tmp_path):
    cards = write_card(tmp_path)
    (tmp_path / "pictures.yaml").write_text("layout: split_file\n")
    assert known_sentence_cards(cards) == sorted([*GLUE, "small"])
    assert is_sentence_card("small", cards)
    assert not is_sentence_card("small")
    assert not is_sentence_card("pictures", cards)
    assert load_sentence_card("small", cards).user_file == cards / "small.yaml"


def test_a_copy_of_a_published_card_is_that_card_and_another_is_refused(tmp_path):
    own = tmp_path / "rte.yaml"
    own.write_bytes((SENTENCE_CARDS_DIR / "rte.yaml").read_bytes())
    assert load_sentence_card("rte", tmp_path) == load_sentence_card("rte")
    own.write_text(own.read_text().replace("2490", "2"))
    with pytest.raises(InputError, match="rte is the name of a published dataset"):
        load_sentence_card("rte", tmp_path)


@pytest.mark.parametrize("name", ["rtee", "../sentences/rte", "", "dtd", "x" * 300, "a\0"])
def test_an_unknown_name_lists_the_known_ones(name):
    assert not is_sentence_card(name)
    with pytest.raises(InputError, match="Known: cola, mrpc, rte, sst2, wnli") as caught:
        load_sentence_card(name)
    assert ("Did you mean 'rte'" in str(caught.value)) == (name == "rtee")


def test_a_missing_folder_of_cards_is_named(tmp_path):
    for name in ("small", "rte"):
        with pytest.raises(InputError, match=r"absent: there is no such folder"):
            load_sentence_card(name, tmp_path / "absent")


TSV = {"first": "sentence1", "second": "sentence2", "label": "label"}
BAD = {
    "no mapping": ([1], r"a card is a mapping of keys, not list"),
    "images": (card(layout="split_file"), "is a card of images"),
    "missing": (card(title=None), "title: is missing"),
    "unknown": (card(label_name=["a"]), "label_name: is not a known key.*'label_names'"),
    "unknown in tsv": (card(tsv=TSV | {"labels": "x"}), r"tsv\.labels: is not a known.*'label'"),
    "one label": (card(label_names=["a"]), "label_names: must hold something|at least 2"),
    "label twice": (card(label_names=["a", "a"]), r"label_names\[1\]: 'a' is there twice"),
    "label lines": (card(label_names=["a", "b\n"]), r"label_names\[1\]: must be one line"),
    "label number": (card(label_names=["a", 1]), r"label_names\[1\]: must be text.*quotes"),
    "no format": (card(parquet=None, tsv=None), "parquet: is missing, and so is tsv"),
    "mixed columns": (card(tsv=TSV | {"label": 1}), "tsv: must give all columns names"),
    "half a pair": (card(tsv=TSV | {"second": None}), r"tsv\.second: goes with"),
    "column": (card(tsv=TSV | {"first": -1}), r"tsv\.first: must be the name of a column"),
    "climbs": (card(folder="../x"), "folder: must be a path below the data root"),
    "stem": (card(tsv=TSV | {"train": "a/b.tsv"}), r"tsv\.train: must be the name of a folder"),
    "sizes": (card(sizes={"train": -1, "validation": 1}), r"sizes\.train: must be a whole number"),
    "name": (card(name="other"), "name: must be the name of the file"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_malformed_cards_name_file_and_key(content, message, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message) as caught:
        load_sentence_card("small", tmp_path)
    assert str(caught.value).startswith(f"{file}: ")


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(card())),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    ),
)
def test_any_value_of_any_key_is_read_or_refused_but_never_crashes(tmp_path_factory, key, value):
    folder = tmp_path_factory.getbasetemp()
    (folder / "small.yaml").write_text(yaml.safe_dump(card() | {key: value}))
    with suppress(InputError):
        assert load_sentence_card("small", folder).name == "small"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_card_is_refused_at_once(tmp_path):
    for name in ("small", "rte"):
        os.mkfifo(tmp_path / f"{name}.yaml")
        with pytest.raises(InputError, match=r"the card cannot be read.*not a plain file"):
            load_sentence_card(name, tmp_path)
