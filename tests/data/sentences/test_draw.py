"""Draws of sentences: SO's published one, balanced ones, and left-over examples to test on."""

import hashlib
import json
from collections import Counter

import pytest

from so_clip.data.sentences.choice import SentenceChoice
from so_clip.data.sentences.draw import draw_rows, leftover_rows
from so_clip.data.sentences.read import gather_sentences
from so_clip.errors import InputError
from tests.helpers.made_sentences import NAMES, files_of, rows, write

# BERT/SO/main.py in github.com/nairouz/SO: train.shuffle(seed=42).select(range(32)) of 2,490 rows.
PUBLISHED = [
    *(1913, 795, 1455, 1390, 1359, 242, 1872, 1357, 2446, 1456, 1412, 2464, 2203, 1436, 463, 2216),
    *(2163, 761, 897, 2279, 1196, 147, 1175, 2421, 1295, 638, 2208, 1752, 487, 1237, 1844, 45),
]


def _choice(root, **options):
    return SentenceChoice(**{"dataset": "rte", "data_root": root} | options)


def test_the_official_draw_of_the_real_file_is_the_published_one(shared):
    choice = _choice(shared / "data", shots=32, subset="official", seed=42)
    data = gather_sentences(choice)
    assert [pair.row for pair in data.train] == PUBLISHED
    assert len(data.test) == 277
    assert Counter(pair.label for pair in data.test) == {0: 146, 1: 131}
    assert data.draw_json()["counts"] == [20, 12]


def test_the_official_draw_of_a_file_of_that_length_is_the_published_one(tmp_path):
    write(tmp_path, files_of("tsv", rows(2490), rows(277)))
    data = gather_sentences(_choice(tmp_path, shots=32, subset="official", seed=42))
    assert [pair.row for pair in data.train] == PUBLISHED
    assert [pair.first for pair in data.train] == [rows(2490)[row][0] for row in PUBLISHED]


def test_a_balanced_draw_has_as_many_of_each_class_in_random_order():
    labels = [0] * 50 + [1] * 7 + [2] * 9
    names = ("a", "b", "c")
    drawn = draw_rows(labels, names, shots=21, subset="balanced", seed=1)
    assert Counter(labels[row] for row in drawn) == {0: 7, 1: 7, 2: 7}
    assert len({*drawn}) == 21
    in_order = [labels[row] for row in drawn]
    assert in_order != sorted(in_order)
    assert drawn == draw_rows(labels, names, shots=21, subset="balanced", seed=1)
    assert drawn != draw_rows(labels, names, shots=21, subset="balanced", seed=2)


def test_a_balanced_draw_stays_the_same_in_later_versions():
    drawn = draw_rows([0, 1] * 50, NAMES, shots=8, subset="balanced", seed=1)
    assert drawn == [50, 91, 74, 46, 73, 17, 30, 49]


def test_left_over_examples_are_never_drawn_and_nearly_the_same_for_all_seeds():
    labels = [0, 1] * 500
    tested = []
    for seed in range(1, 6):
        drawn = draw_rows(labels, NAMES, shots=32, subset="balanced", seed=seed)
        left = leftover_rows(len(labels), drawn, wanted=100)
        assert not {*left} & {*drawn}
        assert len(left) == 100
        assert left == sorted(left)
        tested.append({*left})
    # Each draw can replace only those tested rows that it takes.
    assert all(len(tested[0] & other) >= 100 - 2 * 32 for other in tested)
    assert len(tested[0] & tested[1]) > 85


def test_fewer_are_left_over_than_wanted_when_the_file_is_small():
    assert leftover_rows(6, [0, 3], wanted=10) == [1, 2, 4, 5]


def test_a_run_on_left_over_examples_is_marked_and_records_them(tmp_path):
    write(tmp_path, files_of("tsv"))
    data = gather_sentences(_choice(tmp_path, shots=4, split="leftover"))
    assert data.tested_on == "leftover"
    drawn = {pair.row for pair in data.train}
    assert len(data.test) == 5
    assert not drawn & {pair.row for pair in data.test}
    assert data.draw_json()["test_rows"] == [pair.row for pair in data.test]
    assert [pair[:3] for pair in data.test] == [rows(12)[pair.row] for pair in data.test]


def test_the_draw_is_recorded_with_its_hash(tmp_path):
    write(tmp_path, files_of("tsv"))
    data = gather_sentences(_choice(tmp_path, shots=4, seed=3))
    document = data.draw_json()
    assert data.tested_on == "test"
    drawn = {"labels": document["labels"], "rows": document["rows"]}
    text = json.dumps(drawn, separators=(",", ":"))
    assert document["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert document["rows"] == [pair.row for pair in data.train]
    assert document["labels"] == [row % 2 for row in document["rows"]]
    known = {"dataset": "rte", "shots": 4, "subset": "balanced", "seed": 3, "counts": [2, 2]}
    assert known.items() <= document.items()
    assert "test_rows" not in document


BAD = {
    "more than there are": (101, "official", r"shots=101: the training file has 100 examples"),
    "no multiple": (31, "balanced", r"shots=31: .* of 2 classes\. Give shots=30, or subset=off"),
    "less than a class": (1, "balanced", r"Give shots=2, or subset=official"),
    "small class": (24, "balanced", r"needs 12 examples of 'not_entailment', but .* has 10"),
}


@pytest.mark.parametrize(("shots", "subset", "message"), BAD.values(), ids=BAD)
def test_a_draw_that_is_not_possible_is_refused(shots, subset, message):
    with pytest.raises(InputError, match=message):
        draw_rows([0] * 90 + [1] * 10, NAMES, shots=shots, subset=subset, seed=1)


def test_no_left_over_example_is_refused():
    with pytest.raises(InputError, match="all 3 training examples are drawn"):
        leftover_rows(3, [2, 0, 1], wanted=2)
