"""Sentences and pairs of sentences as tokens, cut as GLUE's scripts cut them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.load import check_length
from so_clip.errors import InputError, reason_of

Row = tuple[list[int], list[int]]


class Tokens(NamedTuple):
    """Tokenised sentences.

    Attributes:
        rows: of each sentence or pair, the ids and the token types, without padding.
        truncated: the number of rows that were cut.
    """

    rows: list[Row]
    truncated: int


def tokenize(
    encoder: SentenceEncoder,
    sentences: Sequence[tuple[str, str | None]],
    max_length: int,
    token_types: bool,
) -> Tokens:
    """Return the tokens of sentences or pairs, with the tokenizer's special tokens.

    A row of more than `max_length` tokens is cut: tokens are taken from the end of the longer
    sentence, one at a time, until the row fits.

    Args:
        encoder: its tokenizer is used.
        sentences: pairs; the second is None in all of them for single sentences.
        max_length: tokens of a row, special ones included.
        token_types: False gives all tokens the type 0, as the released BERT experiment does. An
            encoder without token types has only type 0.

    Raises:
        InputError: the encoder takes fewer tokens, `max_length` leaves none for a sentence, or the
            tokenizer makes tokens that the model does not have.
    """
    check_length(encoder, max_length)
    if not sentences:
        return Tokens([], 0)
    pairs = sentences[0][1] is not None
    _check_room(encoder, max_length, pairs)
    rows = _rows(encoder, sentences)
    long = [i for i, (ids, _) in enumerate(rows) if len(ids) > max_length]
    cut = _rows(encoder, [sentences[i] for i in long], max_length) if long else []
    for i, row in zip(long, cut, strict=True):
        rows[i] = row
    _check_known(encoder, rows)
    if not (token_types and encoder.has_token_types):
        rows = [(ids, [0] * len(ids)) for ids, _ in rows]
    return Tokens(rows, len(long))


def _rows(
    encoder: SentenceEncoder,
    sentences: Sequence[tuple[str, str | None]],
    max_length: int | None = None,
) -> list[Row]:
    firsts, seconds = [first for first, _ in sentences], [second for _, second in sentences]
    cut: dict[str, Any] = {}
    if max_length is not None:
        cut = {"truncation": "longest_first", "max_length": max_length}
    tokenizer = encoder.tokenizer
    try:
        found = tokenizer(
            firsts,
            None if seconds[0] is None else seconds,
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,  # no warning about rows that are cut later
            **cut,
        )
    except Exception as error:  # tokenizers raises plain exceptions about a damaged vocabulary
        raise InputError(
            f"{encoder.description}: its tokenizer cannot read the sentences: {reason_of(error)}. "
            "Copy or download its files again."
        ) from error
    return list(zip(found["input_ids"], found["token_type_ids"], strict=True))


def _check_room(encoder: SentenceEncoder, max_length: int, pairs: bool) -> None:
    special = encoder.tokenizer.num_special_tokens_to_add(pair=pairs)
    least = special + 1 + pairs
    if max_length < least:
        raise InputError(
            f"model.max_length={max_length}: {encoder.description} puts {special} special tokens "
            f"around {'a pair' if pairs else 'a sentence'}. Choose at least {least}."
        )


def _check_known(encoder: SentenceEncoder, rows: Sequence[Row]) -> None:
    """Raise InputError if a row has no token, or a token or type that the model does not have."""
    config = encoder.model.config
    if not all(ids for ids, _ in rows):
        raise InputError(
            f"{encoder.description}: its tokenizer makes no token of an empty sentence, not even a "
            "special one. Give a tokenizer with [CLS] and [SEP], or leave out empty sentences."
        )
    most = [
        ("token", config.vocab_size, max(max(ids) for ids, _ in rows)),
        ("padding", config.vocab_size, encoder.pad_id),
    ]
    if encoder.has_token_types:
        types = max(max(types) for _, types in rows)
        most.append(("token type", config.type_vocab_size, types))
    for what, count, highest in most:
        if not 0 <= highest < count:
            raise InputError(
                f"{encoder.description}: its tokenizer makes {what} {highest}, and the model has "
                f"0 to {count - 1}. The tokenizer belongs to another model."
            )
