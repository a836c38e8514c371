"""Images of parquet sets in Hugging Face's layout, written to the paths in CoOp's split files.

A row holds an encoded image ({"bytes", "path"}) and usually a label. The image's file name, from
its path or from a column, gives its place. If several images have that name, the label's folder
decides. A set without file names cannot be used: nothing else identifies an image.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from so_clip.data.decode import why_too_large
from so_clip.prepare.sources import RemoteFile, SourceFailed
from so_clip.prepare.unpack import Budget, Refused, source_errors
from so_clip.system.commands import install
from so_clip.system.safe_open import MAX_VALUES_BYTES, read_plain

_ROWS_PER_BATCH = 32


class Names:
    """The paths in a split file by file name, folder and class.

    Args:
        paths: in the split file's order.
        classes: the class name of each path.
    """

    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self._by_name: dict[str, list[tuple[str, str, str]]] = {}
        for path, name in zip(paths, classes, strict=True):
            pure = PurePosixPath(path)
            entry = (path, _plain(pure.parent.name), _plain(name))
            self._by_name.setdefault(pure.name, []).append(entry)
            self._by_name.setdefault(pure.stem, []).append(entry)

    def find(self, name: str, label: str, below: str) -> str | None:
        """Return the only path with a file name, label and leading folder; None without one."""
        entries = self._by_name.get(PurePosixPath(name).name, [])
        found = [entry for entry in entries if not below or entry[0].startswith(f"{below}/")]
        if len(found) > 1:
            found = [entry for entry in found if _plain(label) in entry[1:]]
        return found[0][0] if len(found) == 1 else None


def listed_files(listing: Path, source: str) -> list[RemoteFile]:
    """Return the parquet files in a listing: every URL in its JSON that ends in .parquet, in order.

    Hugging Face's datasets-server answers with such a listing for every public set.

    Args:
        listing: the JSON, on disk.
        source: its URL, for messages.

    Raises:
        SourceFailed: it is not JSON, or names no parquet file.
    """
    try:
        content = json.loads(read_plain(listing, MAX_VALUES_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceFailed(
            f"{source}: is not a listing of files ({error}).", spoiled=True
        ) from error
    urls = [url for url in _texts(content) if re.fullmatch(r"https?://\S+\.parquet", url)]
    if not urls:
        raise SourceFailed(f"{source}: lists no parquet files.", spoiled=True)
    return [RemoteFile(url=url, name=PurePosixPath(url).name) for url in dict.fromkeys(urls)]


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (list, dict)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def require_pyarrow(what: str) -> None:
    """Raise SourceFailed, with the pip command, if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise SourceFailed(
            f"{what}: a parquet set needs pyarrow ({error}): {install('so-clip[prepare]')}."
        ) from error


def extract(
    file: Path, target: Path, names: Names, name_column: str | None, below: str, budget: Budget
) -> int:
    """Write the images of one parquet file below `target`, each to its path in the split file.

    Args:
        file: the parquet file.
        target: an existing folder.
        names: the paths in the split file; rows of other images are skipped.
        name_column: the column of file names; None for the names in the images.
        below: the folder of all images in this file; "" for any folder.
        budget: is spent.

    Returns:
        The number of images written.

    Raises:
        SourceFailed: the file is damaged, has other columns or no images, or is a bomb.
    """
    import pyarrow.parquet as pq

    with source_errors(file, target), pq.ParquetFile(file) as table:
        groups = range(table.metadata.num_row_groups)
        size = sum(table.metadata.row_group(index).total_byte_size for index in groups)
        budget.add_archive(file.stat().st_size)
        replace(budget).spend(size)  # before any of it is read; only images are spent
        return _write_rows(table, target, names, name_column, below, budget)


def _write_rows(
    table: Any, target: Path, names: Names, name_column: str | None, below: str, budget: Budget
) -> int:
    image_column, label_column, labels = _columns(table.schema_arrow, name_column)
    columns = [name for name in (image_column, label_column, name_column) if name]
    written = 0
    rows = (
        row
        for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns)
        for row in batch.to_pylist()
    )
    count = table.metadata.num_rows
    with tqdm(rows, f"read {count} rows", count, disable=None) as bar:
        for row in bar:
            image = row[image_column] or {}
            label = row[label_column] if label_column else ""
            label = labels[label] if isinstance(label, int) and 0 <= label < len(labels) else label
            name = row[name_column] if name_column else image.get("path")
            path = names.find(str(name or ""), str(label), below)
            if path is None:
                continue
            data = image.get("bytes")
            if not isinstance(data, bytes):
                raise Refused(f"the row of {path} holds no image, only its path")
            budget.spend(len(data))
            if reason := why_too_large(io.BytesIO(data)):
                raise Refused(f"{path}: {reason}")
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            written += 1
    return written


def _columns(schema: Any, name_column: str | None) -> tuple[str, str | None, list[str]]:
    """Return the image column, the label column if there is one, and the names of the labels."""
    import pyarrow as pa

    image_columns = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    if len(image_columns) != 1:
        raise Refused(f"one column of images was expected, found {image_columns or 'none'}")
    if name_column and name_column not in schema.names:
        raise Refused(f"it has no column {name_column}, but {', '.join(schema.names)}")
    label = next((name for name in ("label", "labels", "class") if name in schema.names), None)
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        names = []
    return image_columns[0], label, [str(name) for name in names]


def _plain(text: str) -> str:
    """Return the letters and digits of a name in lower case, to compare it."""
    return "".join(char for char in text.lower() if char.isalnum())
