"""A user's own images in a CSV file: path, label and, optionally, split."""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath

from so_clip.data.examples import SPLITS
from so_clip.data.plain_files import decoded
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import DiskNames, composed
from so_clip.data.user.links import LinkCheck, refuse_shared
from so_clip.data.user.listing import Listed, Listing, is_unusual, splits_of
from so_clip.errors import InputError, nearest, reason_of
from so_clip.system.safe_open import MAX_LIST_BYTES, read_plain

# Names of the columns, in lower case, by their content.
COLUMNS = {
    "path": (
        *("path", "file", "filename", "filepath", "image"),
        *("file_name", "file_path", "image_path", "img_path"),
    ),
    "label": ("label", "class", "class_name", "category", "labels"),
    "split": ("split", "set", "subset"),
}
DELIMITERS = (",", ";", "\t", "|")
# Spreadsheets read and write such a first line.
_NAMED_DELIMITER = re.compile(r'"?sep=([^\r\n"])"?[ \t]*(?:\r\n|\r|\n)', re.IGNORECASE)
# Longer names of columns are mistakes. Messages show them.
_MAX_HEADER = 80
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
        raise InputError(f"{root}: cannot be listed: {reason_of(error)}.") from error
    if len(files) != 1:
        number = f"{len(files)} CSV files, the first is {files[0]}" if files else "no CSV file"
        raise InputError(f"{root}: holds {number}. Name the list with dataset.csv_file=FILE.")
    return root / files[0]


@dataclass(frozen=True)
class CsvOptions:
    """How a CSV file is read.

    Attributes:
        columns: the name of the column for "path", "label" and "split" where the user gives it.
        draw_split: ignore a split column.
        follow_links: follow links to places outside the folder of the images.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    draw_split: bool = False
    follow_links: bool = False


def list_csv(file: Path, root: Path | None = None, options: CsvOptions | None = None) -> Listing:
    """List the images of a CSV file.

    The first line shows the delimiter: comma, semicolon, tab or |; a line before it, such as
    "sep=;", names it. The text is UTF-8, UTF-16 with a byte order mark, or else Windows-1252, with
    any line ends. Columns other than path, label and split are ignored. Backslashes in paths are
    separators, and absolute paths must lead into the folder of the images. Names of files are
    found in either Unicode form. Images are not opened.

    Args:
        file: the list.
        root: the folder that the paths start from; None: the folder of the list.
        options: columns, splits and links.

    Raises:
        InputError: no text, missing columns, a row with missing values, a path or a link out of
            the dataset, a repeated image, an unknown split, or splits for some images only. The
            message names file and line.
    """
    options = options or CsvOptions()
    root = file.parent if root is None else root
    listing = Listing(file, read_from=[file])
    rows = _rows(file, listing.notes)
    number, header = next(rows, (1, []))
    header = [name[:_MAX_HEADER] for name in header]
    places = _columns(file, number, header, options)
    reader = _PathReader(root, options.follow_links)
    words: dict[str, int] = {}
    reals: list[str] = []
    first_split: tuple[int, bool] | None = None
    for number, row in rows:
        place = f"{file}: line {number}"
        if len(row) != len(header):
            raise InputError(
                f"{place}: holds {len(row)} values, but line 1 names {len(header)} columns. Put "
                "a value that contains the delimiter into double quotes."
            )
        path, real = reader.read(place, number, row[places["path"]])
        reals.append(real)
        key = " ".join(composed(row[places["label"]]).split())
        if not key:
            raise InputError(f"{place}: the label is empty. Fill it in, or delete the line.")
        split = row[places["split"]].strip() if "split" in places else ""
        first_split = first_split or (number, not split)
        if first_split[1] != (not split):
            raise InputError(
                f"{place}: has {'a' if split else 'no'} split, but line {first_split[0]} "
                f"has {'none' if first_split[1] else 'one'}. Give all lines a split, or none."
            )
        if split:
            words.setdefault(split, number)
        listing.images.append(Listed(path, key, split or None))
        listing.keys.add(key)
    _name_splits(file, words, listing)
    if not words:
        _note_folders_of_splits(listing, options.draw_split)
    if reader.links.linked:
        refuse_shared(root, zip(listing.images, reals, strict=True))
    return listing


class _PathReader:
    """Turns the paths of a list into the paths of files below one folder.

    Args:
        root: the folder.
        follow_links: see LinkCheck.
    """

    def __init__(self, root: Path, follow_links: bool) -> None:
        self._root = root
        self._bases = [
            f"{folder.rstrip(os.sep)}/".replace(os.sep, "/")
            # Path.absolute keeps "..".
            for folder in dict.fromkeys((os.path.abspath(root), os.path.realpath(root)))  # noqa: PTH100
        ]
        self._names = DiskNames(root)
        self._seen: dict[str, int] = {}
        self.links = LinkCheck(root, follow_links)

    def read(self, place: str, number: int, text: str) -> tuple[str, str]:
        """Return the path of line `number` below the root, and the real path of its file."""
        path = self._below(text.strip())
        # Blanks at the ends are usually a mistake, but the name of a file may have them.
        if text != text.strip():
            exact = self._below(text)
            if os.path.isfile(self._root / exact):  # noqa: PTH113
                path = exact
        if reason := why_outside(path):
            raise InputError(
                f"{place}: the path {text.strip()[:200]!r} is refused: {reason}. Paths start in "
                f"the dataset's folder, {self._root}, and stay in it."
            )
        before = self._seen.setdefault(composed(normpath(path)), number)
        if before != number:
            raise InputError(
                f"{place}: repeats the image {path[:200]!r} of line {before}. Delete one of the "
                "lines."
            )
        try:
            return path, self.links.real_path(self._names.find(path))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error

    def _below(self, text: str) -> str:
        """Return a path with forward slashes, relative to the root if it is an absolute one."""
        path = text.replace("\\", "/")
        base = next((base for base in self._bases if path.startswith(base)), "")
        return path[len(base) :]


def _name_splits(file: Path, words: Mapping[str, int], listing: Listing) -> None:
    """Replace the words of the split column by train, val and test."""
    known = splits_of(words)
    for word, number in words.items():
        if word not in known:
            raise InputError(
                f"{file}: line {number}: the split {word[:80]!r} is not one of "
                f"{', '.join(SPLITS)}. Name another column with dataset.split_column=NAME, or "
                "ignore it with dataset.split=drawn."
            )
    if words:
        listing.images = [image._replace(split=known[str(image.split)]) for image in listing.images]
    if unusual := [word for word in words if is_unusual(word)]:
        pairs = ", ".join(f"{word} is {known[word]}" for word in sorted(unusual))
        listing.notes.append(f"values of the split column are read as splits: {pairs}")


def _note_folders_of_splits(listing: Listing, draws: bool) -> None:
    """Note that a split is drawn although the folders in the paths have the names of splits."""
    folders = {image.path.split("/")[0] for image in listing.images if "/" in image.path}
    splits = splits_of(folders)
    if not draws and len(splits) == len(folders) and {"train", "test"} <= {*splits.values()}:
        listing.notes.append(
            f"the paths begin with {' and '.join(sorted(folders))}, but no column has the split, "
            "so a split is drawn from all images; add a column split to keep theirs"
        )


def _columns(file: Path, number: int, header: Sequence[str], options: CsvOptions) -> dict[str, int]:
    names = list(map(_plain, header))
    places = {}
    for column, known in COLUMNS.items():
        option = f"dataset.{column}_column"
        if column == "split" and options.draw_split:
            continue
        given = options.columns.get(column)
        wanted = known if given is None else (_plain(given),)
        found = [index for index, name in enumerate(names) if name in wanted]
        if len(found) > 1:
            both = " and ".join(header[index] for index in found)
            raise InputError(
                f"{file}: line {number}: {both} are both the column {column}. Name one with "
                f"{option}=NAME."
            )
        if found:
            places[column] = found[0]
        elif given is not None or column != "split":
            there = ", ".join(repr(name) for name in header[:12]) or "nothing"
            if given is not None:
                problem = f"{option}={given}: {file} has no such column.{nearest(given, header)}"
                raise InputError(f"{problem} Line {number} names {there}.")
            raise InputError(
                f"{file}: line {number}: there is no column {column}. {_HEAD}; it names {there}. "
                f"Name the column with {option}=NAME."
            )
    return places


def _plain(name: str) -> str:
    """Return the name of a column in lower case, with single blanks."""
    return " ".join(composed(name).lower().split())


def _rows(file: Path, notes: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line number and the values of each row that is not blank."""
    text = _text(file, notes)
    named = _NAMED_DELIMITER.match(text)
    # The line of the delimiter stays as a blank one, so that the numbers of lines are right.
    text = text[named.end() :] if named else text
    skipped = 1 if named else 0
    first = text.lstrip("\r\n").splitlines()[:1] or [""]
    delimiter = named[1] if named else max(DELIMITERS, key=first[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        before = 0
        for row in lines:
            if any(value.strip() for value in row):
                yield before + 1 + skipped, row
            before = lines.line_num
    except csv.Error as error:
        raise InputError(
            f"{file}: line {lines.line_num + skipped}: is not CSV ({error}). Repair its quotes."
        ) from error


def _text(file: Path, notes: list[str]) -> str:
    try:
        data = read_plain(file, MAX_LIST_BYTES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason_of(error)}.") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = decoded(file, data, "utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = _windows_text(file, data)
            line = data.count(b"\n", 0, error.start) + 1
            notes.append(
                f"{file} is not UTF-8 text (line {line}), so it is read as Windows-1252, as "
                "spreadsheets save it; check its special characters"
            )
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{file}: line {line}: holds a NUL character. Save it as UTF-8 text.")
    return text


def _windows_text(file: Path, data: bytes) -> str:
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return decoded(file, data)  # it names the line that is not UTF-8
