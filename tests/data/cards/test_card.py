"""A card is read completely, or refused with its file and key."""

import copy
from contextlib import suppress
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.data.cards.card import card_names, check_trainable, how_to_get, load_card
from so_clip.errors import InputError
from so_clip.system.paths import CARDS_DIR

GOOD = {
    "name": "small",
    "title": "Small set",
    "layout": "split_file",
    "folder": "small",
    "image_dir": "images",
    "split_file": "split_small.json",
    "split_sha256": "0" * 64,
    "sizes": {"classes": 2, "train": 4, "val": 2, "test": 2},
    "templates": {"plain": "a photo of a {}.", "specific": "a small {}.", "ensemble": ["a {}!"]},
    "licence": "CC0",
    "homepage": "https://example.org",
    "citation": "nobody",
    "sources": [{"kind": "archive", "url": "https://example.org/a.zip"}],
    "class_names": ["ant", "bee"],
    "class_folders": ["n01", "n02"],
}


def _load(tmp_path, content):
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    return load_card("small", tmp_path)


def test_all_keys_of_a_card_are_read(tmp_path):
    card = _load(tmp_path, GOOD)
    assert card.sizes == GOOD["sizes"]
    assert card.templates == {"plain": "a photo of a {}.", "specific": "a small {}."}
    assert card.template_ensemble == ("a {}!",)
    assert card.class_names == ("ant", "bee")
    assert card.class_folders == ("n01", "n02")
    assert card.sources == ({"kind": "archive", "url": "https://example.org/a.zip"},)
    assert card.split_sha256 == "0" * 64


def test_optional_keys_may_be_absent(tmp_path):
    content = {
        k: v for k, v in GOOD.items() if k not in ("split_sha256", "sources", "class_folders")
    }
    content["templates"] = {k: GOOD["templates"][k] for k in ("plain", "specific")}
    card = _load(tmp_path, content | {"image_dir": ""})
    assert (card.split_sha256, card.sources, card.class_folders) == (None, (), ())
    assert (card.template_ensemble, card.image_dir) == ((), "")


RELATIVE = {
    **{key: GOOD[key] for key in ("title", "folder", "image_dir", "licence", "homepage")},
    **{"name": "kin", "layout": "wordnet_folders", "classes_of": "small", "citation": "nobody"},
    "sizes": {"classes": 2, "train": 0, "val": 0, "test": 2},
}


def _load_relative(tmp_path, **changes):
    _load(tmp_path, GOOD)
    content = {key: value for key, value in (RELATIVE | changes).items() if value is not None}
    (tmp_path / "kin.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_card("kin", tmp_path)


def test_a_card_may_have_the_classes_of_another(tmp_path):
    card = _load_relative(tmp_path)
    assert (card.class_names, card.class_folders) == (("ant", "bee"), ("n01", "n02"))
    assert (card.classes_of, card.parent_labels) == ("small", (0, 1))
    assert (card.templates, card.template_ensemble) == (
        {"plain": "a photo of a {}.", "specific": "a small {}."},
        ("a {}!",),
    )
    assert card.test_only
    some = {"classes": 1, "train": 0, "val": 0, "test": 2}
    card = _load_relative(tmp_path, class_folders=["n02"], sizes=some)
    assert (card.class_names, card.parent_labels) == (("bee",), (1,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_of": None}, "classes_of: goes with layout: wordnet_folders or numbered_folders"),
        ({"layout": "imagenet"}, "classes_of: goes with layout: wordnet_folders"),
        ({"classes_of": "smal"}, "classes_of: must name another card"),
        ({"classes_of": "kin"}, "classes_of: must name another card"),
        ({"classes_of": ["small"]}, "classes_of: must name another card"),
        (
            {"class_names": ["ant", "bee"]},
            "class_names: comes from classes_of: small. Leave it out",
        ),
        ({"templates": {"plain": "{}"}}, "templates: comes from classes_of: small"),
        ({"class_folders": ["n03"]}, r"class_folders\[0\]: 'n03' is not a class of small"),
        ({"class_folders": ["n01", "n01"]}, "class_folders: must name 2 different"),
        ({"class_folders": "n01"}, "class_folders: must be a list"),
        ({"sizes": {"classes": 3, "train": 0, "val": 0, "test": 2}}, "sizes.classes: is 3"),
    ],
)
def test_bad_relatives_name_file_and_key(changes, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        _load_relative(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'kin.yaml'}: ")


def test_relatives_of_relatives_are_refused(tmp_path):
    _load_relative(tmp_path)
    (tmp_path / "far.yaml").write_text(
        yaml.safe_dump(RELATIVE | {"name": "far", "classes_of": "kin"}), encoding="utf-8"
    )
    with pytest.raises(
        InputError, match=r"kin\.yaml: classes_of: must name another card that has class_names"
    ):
        load_card("far", tmp_path)


def test_a_dataset_with_only_test_images_cannot_be_trained_on(tmp_path):
    check_trainable(_load(tmp_path, GOOD))
    with pytest.raises(InputError, match=r"dataset=kin: .*testing only.*transfer=\[kin\]"):
        check_trainable(_load_relative(tmp_path))


def test_every_card_of_the_project_loads():
    names = card_names()
    assert names == sorted(names)
    assert {"digits", "eurosat", "imagenet"} <= set(names)
    for name in names:
        card = load_card(name)
        assert card.name == name
        assert card.homepage in how_to_get(card)
        command = f"python -m so_clip prepare dataset={name} data_root=FOLDER"
        assert (command in how_to_get(card)) == bool(card.sources)


def test_unknown_dataset_offers_the_nearest():
    with pytest.raises(
        InputError, match=r"dataset=eurosta: .*Did you mean 'eurosat'.*Known: .*dtd"
    ):
        load_card("eurosta")


@pytest.mark.parametrize("name", ["../datasets/eurosat", "eurosat.yaml", "", "EUROSAT/../eurosat"])
def test_a_name_is_no_path(name):
    with pytest.raises(InputError, match="there is no dataset of that name"):
        load_card(name)


def _changed(*path_and_value):
    *path, value = path_and_value
    content = copy.deepcopy(GOOD)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def _without(key):
    return {k: v for k, v in GOOD.items() if k != key}


BAD_CARDS = {
    "not yaml": ("a: [", "cannot be read"),
    "code": ("!!python/object/apply:os.system ['false']", "cannot be read"),
    "laughs": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
        + "title: *j\n",
        "it holds an alias",
    ),
    "deep": ("[" * 100_000, "nested more than 20 levels deep"),
    "empty": ("", "a card is a mapping of keys, not nothing"),
    "a list": ("- a", "a card is a mapping of keys, not list"),
    "unknown key": (_changed("licnce", "MIT"), r"licnce: is not a known key.*'licence'"),
    "ensemble in the wrong place": (_changed("template_ensemble", ["{}"]), "template_ensemble: is"),
    "no title": (_without("title"), "title: is missing"),
    "no names": (_without("class_names"), "class_names: is missing"),
    "other name": (_changed("name", "other"), "name: must be the name of the file, 'small'"),
    "layout": (_changed("layout", "zip"), "layout: must be one of split_file"),
    "title number": (_changed("title", 101), "title: must be text, not 101"),
    "folder climbs": (_changed("folder", "../x"), r"folder: must be a path below.*'\.\.'"),
    "folder absolute": (_changed("folder", "/x"), "folder: must be a path below.*absolute"),
    "folder empty": (_changed("folder", ""), "folder: must be text"),
    "image_dir null": (_changed("image_dir", None), "image_dir: must be text"),
    "image_dir number": (_changed("image_dir", 2750), "image_dir: must be text, not 2750"),
    "split_file climbs": (_changed("split_file", "../s.json"), "split_file: must be a path"),
    "split_file missing": (_without("split_file"), "split_file: goes with"),
    "split_file surplus": (_changed("layout", "imagenet"), "split_file: goes with"),
    "sha short": (_changed("split_sha256", "abc"), "split_sha256: must be 64"),
    "sha number": (_changed("split_sha256", 7), "split_sha256: must be 64"),
    "sizes list": (_changed("sizes", [1]), "sizes: must be a mapping"),
    "sizes missing": (_changed("sizes", {"classes": 2}), r"sizes\.train: is missing"),
    "sizes unknown": (_changed("sizes", "tset", 1), r"sizes\.tset: is not a known key.*'test'"),
    "names text": (_changed("class_names", "ant"), "class_names: must be a list"),
    "names yaml bool": (_changed("class_names", 1, False), r"class_names\[1\]: .*quotes"),
    "names blank": (_changed("class_names", 1, " "), r"class_names\[1\]: must be text"),
    "template missing": (_changed("templates", {"plain": "{}"}), r"templates\.specific: is mis"),
    "template unknown": (_changed("templates", "extra", "{}"), r"extra: is not a known key. Kn"),
    "template bare": (_changed("templates", "plain", "a photo"), r"templates\.plain: must be text"),
    "template twice": (_changed("templates", "plain", "{} {}"), r"templates\.plain: must be text"),
    "template field": (_changed("templates", "plain", "{0.x}"), r"templates\.plain: must be text"),
    "ensemble text": (_changed("templates", "ensemble", "{}"), r"templates\.ensemble: must be a l"),
    "ensemble bare": (_changed("templates", "ensemble", ["a"]), r"templates\.ensemble\[0\]: must"),
    "sources text": (_changed("sources", ["https://x"]), r"sources\[0\]: must be a mapping, not"),
    "elsewhere climbs": (_changed("other_folders", [".", "a/../b"]), r"other_folders\[1\]: must"),
    "elsewhere text": (_changed("other_folders", "a"), "other_folders: must be a list"),
    "folders few": (_changed("class_folders", ["n01"]), "class_folders: must name 2 different"),
    "folders twice": (_changed("class_folders", ["n", "n"]), "class_folders: must name 2"),
    "folders climb": (_changed("class_folders", ["n01", ".."]), r"class_folders\[1\]: must be the"),
    "folders deep": (_changed("class_folders", ["n01", "a/b"]), r"class_folders\[1\]: must be the"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_CARDS.values(), ids=BAD_CARDS)
def test_malformed_cards_name_file_and_key(content, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'small.yaml'}: ")


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(GOOD)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    ),
)
def test_any_value_of_any_key_is_read_or_refused_but_never_crashes(tmp_path_factory, key, value):
    folder = tmp_path_factory.getbasetemp()
    with suppress(InputError):
        assert _load(folder, GOOD | {key: value}).name == "small"


def test_cards_folder_holds_data_only():
    # `import datasets` must stay what it is to other libraries.
    assert {path.suffix for path in CARDS_DIR.rglob("*") if path.is_file()} == {".yaml"}
