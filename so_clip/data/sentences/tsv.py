"""GLUE's tsv files: tabs between the fields, no quotes, with or without a header."""

import io
from collections.abc import Sequence

from so_clip.data.plain_files import shortened
from so_clip.data.sentences.card import TsvFiles
from so_clip.data.sentences.pairs import MAX_ROWS, Pair, label_of, sentence_of
from so_clip.errors import InputError


def read_tsv(text: str, name: str, layout: TsvFiles, label_names: Sequence[str]) -> list[Pair]:
    """Return the examples of a tsv file.

    Quotes are plain characters, and only line ends separate lines, as in the hub's conversion of
    GLUE. Blanks at the ends of sentences stay. Empty lines are left out.

    Args:
        text: the content.
        name: the file, for messages.
        layout: the columns.
        label_names: in label order.

    Raises:
        InputError: a missing column, a line with another number of fields, an unknown label, or
            no example. The message names the line.
    """
    # Text mode turns \r\n and \r into \n. str.splitlines would split at more characters.
    lines = enumerate(io.StringIO(text, newline=None), start=1)
    numbered = ((number, line.removesuffix("\n").split("\t")) for number, line in lines)
    fields_of = ((number, fields) for number, fields in numbered if fields != [""])
    places: dict[str | int, int] = {}
    width = 0
    pairs: list[Pair] = []
    for number, fields in fields_of:
        place = f"{name}: line {number}"
        if not places:
            places, width = _places(fields, layout, place), len(fields)
            if layout.has_header:
                continue
        if len(fields) != width:
            raise InputError(
                f"{place}: has {len(fields)} fields, but the first line has {width}. Fields are "
                "separated by tabs, and quotes do not protect a tab."
            )
        if len(pairs) == MAX_ROWS:
            raise InputError(f"{place}: the file has more than {MAX_ROWS} examples.")
        second = layout.second
        pairs.append(
            Pair(
                sentence_of(fields[places[layout.first]], layout.first, place),
                None if second is None else sentence_of(fields[places[second]], second, place),
                label_of(fields[places[layout.label]], label_names, place),
                len(pairs),
            )
        )
    if not pairs:
        raise InputError(f"{name}: holds no example. Get the file again.")
    return pairs


def _places(fields: Sequence[str], layout: TsvFiles, place: str) -> dict[str | int, int]:
    """Return the position of each column in a line, from the first line of the file."""
    columns = [layout.first, layout.label, *([] if layout.second is None else [layout.second])]
    if not layout.has_header:
        last = max(int(column) for column in columns)
        if last >= len(fields):
            raise InputError(
                f"{place}: has {len(fields)} fields separated by tabs, but the card names column "
                f"{last}, counted from 0."
            )
        return {column: int(column) for column in columns}
    wrong = [str(column) for column in columns if fields.count(str(column)) != 1]
    if wrong:
        raise InputError(
            f"{place}: there is no column {shortened(wrong[0])}, or several. The header names "
            f"{shortened(', '.join(fields))}; fields are separated by tabs."
        )
    return {column: fields.index(str(column)) for column in columns}
