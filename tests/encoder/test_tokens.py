"""Sentences as tokens: special tokens, token types, and cutting as GLUE's scripts cut."""

from pathlib import Path

import pytest

from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.tokens import tokenize
from so_clip.errors import InputError
from tests.helpers.tiny_encoders import PAIRS, POSITIONS, tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def pieces(encoder: SentenceEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def cut_one_by_one(first: list[int], second: list[int], most: int) -> tuple[list[int], list[int]]:
    """Take tokens from the end of the longer part until both fit: an independent oracle.

    If both parts have the same length, the one that was shorter at first loses the next token.
    """
    rest, second_loses_ties = ([*first], [*second]), len(second) < len(first)
    while len(rest[0]) + len(rest[1]) > most:
        difference = len(rest[0]) - len(rest[1])
        rest[second_loses_ties if difference == 0 else difference < 0].pop()
    return rest


def test_a_pair_has_the_special_tokens_of_its_encoder(encoder):
    rows, truncated = tokenize(encoder, PAIRS, POSITIONS, token_types=True)
    start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    assert truncated == 0
    assert len(rows) == len(PAIRS)
    for (first, second), (ids, types) in zip(PAIRS, rows, strict=True):
        one, two = pieces(encoder, first), pieces(encoder, second)
        assert ids == [start, *one, end, *two, end]
        assert types == [0] * (len(one) + 2) + [1] * (len(two) + 1)


@pytest.mark.parametrize("length", [8, 11, 16, 20])
def test_the_longer_sentence_is_cut_first_and_cut_rows_are_counted(encoder, length):
    rows, truncated = tokenize(encoder, PAIRS, length, token_types=True)
    start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    expected = 0
    for (first, second), (ids, types) in zip(PAIRS, rows, strict=True):
        one, two = pieces(encoder, first), pieces(encoder, second)
        expected += len(one) + len(two) + 3 > length
        one, two = cut_one_by_one(one, two, length - 3)
        assert ids == [start, *one, end, *two, end]
        assert sum(types) == len(two) + 1
    assert truncated == expected > 0


def test_token_types_can_be_dropped_as_the_released_experiment_drops_them(encoder):
    with_types, _ = tokenize(encoder, PAIRS, POSITIONS, token_types=True)
    without, _ = tokenize(encoder, PAIRS, POSITIONS, token_types=False)
    assert [ids for ids, _ in without] == [ids for ids, _ in with_types]
    assert not any(any(types) for _, types in without)


def test_single_sentences_have_one_part(encoder):
    rows, truncated = tokenize(encoder, [(first, None) for first, _ in PAIRS], 9, token_types=True)
    start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    whole = [pieces(encoder, first) for first, _ in PAIRS]
    assert [ids for ids, _ in rows] == [[start, *ids[:7], end] for ids in whole]
    assert truncated == sum(len(ids) > 7 for ids in whole)
    assert tokenize(encoder, [], 9, token_types=True) == ([], 0)


def test_a_length_that_leaves_no_sentence_is_refused(encoder):
    with pytest.raises(InputError, match=r"max_length=4: .* 3 special tokens.*at least 5"):
        tokenize(encoder, PAIRS, 4, token_types=True)
    with pytest.raises(InputError, match=r"max_length=41: .* at most 40 tokens"):
        tokenize(encoder, PAIRS, 41, token_types=True)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path):
    small = tiny_encoder(tmp_path / "small", vocab_size=60)
    with pytest.raises(InputError, match=r"makes token \d+, and the model has 0 to 59"):
        tokenize(small, PAIRS, POSITIONS, token_types=True)
