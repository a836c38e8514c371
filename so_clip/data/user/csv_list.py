"""A user's own images in a CSV file: path, label and, optionally, split."""

import codecs
import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from posixpath import normpath

from so_clip.data.plain_files import decoded
from so_clip.data.safe_path import why_outside
from so_clip.data.user.listing import SPLIT_NAMES, Listed, Listing, composed
from so_clip.errors import InputError

# Names of the columns, in lower case, by their content.
COLUMNS = {
    "path": ("path", "file", "filename", "filepath", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "set", "subset"),
}
DELIMITERS = (",", ";", "\t", "|")
_HEAD = "The first line names the columns: path,label or path,label,split"


def find_csv(root: Path, given: Path | None) -> Path:
    """Return the CSV file of a dataset in the folder `root`.

    Args:
        given: a path below `root` or below the current folder; None: the only CSV file in `root`.

    Raises:
        InputError: there is no such file, or several.
    """
    if given is not None:
        places = list(dict.fromkeys((root / given, given)))
        found = next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113
        if found is None:
            looked = ", ".join(map(str, places))
            raise InputError(
                f"dataset.csv_file={given}: there is no such file. Looked for {looked}."
            )
        return found
    try:
        files = sorted(
            entry.name
            for entry in os.scandir(root)
            if entry.name.lower().endswith((".csv", ".tsv")) and entry.is_file()
        )
    except OSError as error:
        raise InputError(f"{root}: cannot be listed: {error.strerror or error}.") from error
    if len(files) != 1:
        number = f"{len(files)} CSV files, the first is {files[0]}" if files else "no CSV file"
        raise InputError(f"{root}: holds {number}. Name the list with dataset.csv_file=FILE.")
    return root / files[0]


def list_csv(file: Path, root: Path | None = None) -> Listing:
    """List the images of a CSV file.

    The first line shows the delimiter: comma, semicolon, tab or |. The text is UTF-8, or UTF-16
    with a byte order mark, with any line ends. Columns other than path, label and split are
    ignored. Images are not opened.

    Args:
        file: the list.
        root: the folder that the paths start from; None: the folder of the list.

    Raises:
        InputError: no text, missing columns, a row with missing values, a path outside the
            dataset, a repeated image, an unknown split, or splits for some images only. The
            message names file and line.
    """
    rows = _rows(file)
    number, header = next(rows, (1, []))
    root = file.parent if root is None else root
    places = _columns(file, number, header)
    listing = Listing(file, read_from=[file])
    seen: dict[str, int] = {}
    first_split: tuple[int, bool] | None = None
    for number, row in rows:
        place = f"{file}: line {number}"
        if len(row) != len(header):
            raise InputError(
                f"{place}: holds {len(row)} values, but line 1 names {len(header)} columns. Put "
                "a value that contains the delimiter into double quotes."
            )
        path = _path(place, row[places["path"]], root)
        before = seen.setdefault(composed(normpath(path)), number)
        if before != number:
            raise InputError(
                f"{place}: repeats the image {path!r} of line {before}. Delete one of the lines."
            )
        key = " ".join(composed(row[places["label"]]).split())
        if not key:
            raise InputError(f"{place}: the label is empty. Fill it in, or delete the line.")
        split = _split(place, row[places["split"]]) if "split" in places else None
        first_split = first_split or (number, split is None)
        if first_split[1] != (split is None):
            raise InputError(
                f"{place}: has {'no' if split is None else 'a'} split, but line {first_split[0]} "
                f"has {'none' if first_split[1] else 'one'}. Give all lines a split, or none."
            )
        listing.images.append(Listed(path, key, split))
        listing.keys.add(key)
    return listing


def _path(place: str, text: str, root: Path) -> str:
    path = text.strip()
    # Blanks at the ends are usually a mistake, but the name of a file may have them.
    if path != text and os.path.isfile(os.path.join(root, text)):  # noqa: PTH113, PTH118
        path = text
    if reason := why_outside(path):
        raise InputError(
            f"{place}: the path {path[:200]!r} is refused: {reason}. Paths start in the dataset's "
            "folder and stay in it."
        )
    return path


def _split(place: str, text: str) -> str | None:
    name = text.strip().lower()
    if not name:
        return None
    if name not in SPLIT_NAMES:
        raise InputError(
            f"{place}: the split {text[:80]!r} is not one of {', '.join(SPLIT_NAMES)}."
        )
    return SPLIT_NAMES[name]


def _columns(file: Path, number: int, header: Sequence[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    places = {}
    for column, known in COLUMNS.items():
        found = [index for index, name in enumerate(names) if name in known]
        if len(found) > 1:
            both = " and ".join(header[index] for index in found)
            raise InputError(
                f"{file}: line {number}: {both} are both the column {column}. Rename one."
            )
        if found:
            places[column] = found[0]
        elif column != "split":
            raise InputError(f"{file}: line {number}: there is no column {column}. {_HEAD}.")
    return places


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line number and the values of each row that is not blank."""
    text = _text(file)
    first = text.lstrip("\r\n").splitlines()[:1] or [""]
    delimiter = max(DELIMITERS, key=first[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        before = 0
        for row in lines:
            if any(value.strip() for value in row):
                yield before + 1, row
            before = lines.line_num
    except csv.Error as error:
        raise InputError(
            f"{file}: line {lines.line_num}: is not CSV ({error}). Repair its quotes."
        ) from error


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}.") from error
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = decoded(file, data, "utf-16" if data.startswith(marks) else "utf-8-sig")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{file}: line {line}: holds a NUL character. Save it as UTF-8 text.")
    return text
