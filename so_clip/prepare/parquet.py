"""Images out of parquet sets in Hugging Face's layout, under the names that CoOp's splits know.

A row holds an encoded image ({"bytes", "path"}) and mostly a label. Its place is found by its file
name, from the image's own path or from a column of names; where several images bear that name, by
the folder that its label stands for. A set that has lost its file names cannot be used: which image
is which, only names tell.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from so_clip.data.images import why_too_large
from so_clip.prepare.sources import RemoteFile, SourceFailed
from so_clip.prepare.unpack import (
    HARMLESS_BYTES,
    MAX_RATIO,
    Budget,
    Refused,
    check_ratio,
    source_errors,
)

_ROWS_AT_ONCE = 32


class Names:
    """Where the images of a split lie, by file name, folder and class.

    Args:
        paths: as the split lists them.
        classes: the class name of each path.
    """

    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self.of: dict[str, list[tuple[str, str, str]]] = {}
        for path, name in zip(paths, classes, strict=True):
            pure = PurePosixPath(path)
            known = (path, _plain(pure.parent.name), _plain(name))
            self.of.setdefault(pure.name, []).append(known)
            self.of.setdefault(pure.stem, []).append(known)

    def find(self, name: str, label: str, below: str) -> str | None:
        """Return the one path that fits a file name, its label and a leading folder, or None."""
        known = self.of.get(PurePosixPath(name).name, [])
        fitting = [each for each in known if not below or each[0].startswith(f"{below}/")]
        if len(fitting) > 1:
            fitting = [each for each in fitting if _plain(label) in each[1:]]
        return fitting[0][0] if len(fitting) == 1 else None


def listed_files(listing: Path, source: str) -> list[RemoteFile]:
    """Return the parquet files that a listing names: every URL in its JSON that ends so, in order.

    Hugging Face's datasets-server answers in this way for every public set.

    Args:
        listing: the JSON, on disk.
        source: its URL, for messages.

    Raises:
        SourceFailed: it is no JSON, or names no parquet file.
    """
    try:
        content = json.loads(listing.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceFailed(f"{source}: is no listing of files ({error}).", spoiled=True) from error
    urls = [url for url in _texts(content) if re.fullmatch(r"https?://\S+\.parquet", url)]
    if not urls:
        raise SourceFailed(f"{source}: lists no parquet files.", spoiled=True)
    return [RemoteFile(url=url, name=PurePosixPath(url).name) for url in dict.fromkeys(urls)]


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (list, dict)):
        for each in content.values() if isinstance(content, dict) else content:
            yield from _texts(each)


def require_pyarrow(what: str) -> None:
    """Raise SourceFailed, with the command that installs it, where there is no pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise SourceFailed(
            f"{what}: a parquet set needs pyarrow ({error}): pip install 'so-clip[prepare]'."
        ) from error


def extract(
    file: Path, target: Path, names: Names, name_column: str | None, below: str, budget: Budget
) -> int:
    """Write the images of one parquet file below `target`, each at its split's path.

    Args:
        file: the parquet file.
        target: an existing folder.
        names: which images are wanted, and where; rows of others are passed over.
        name_column: the column with file names, or None for those within the images.
        below: all rows are of images below this folder; "" if not.
        budget: is spent.

    Returns:
        How many images were written.

    Raises:
        SourceFailed: the file is damaged, of another shape, has lost its names, or hides a bomb.
    """
    import pyarrow.parquet as pq

    with source_errors(file, target), pq.ParquetFile(file) as table:
        groups = range(table.metadata.num_row_groups)
        size = sum(table.metadata.row_group(index).total_byte_size for index in groups)
        check_ratio(size, max(HARMLESS_BYTES, MAX_RATIO * file.stat().st_size))
        return _write_rows(table, target, names, name_column, below, budget)


def _write_rows(
    table: Any, target: Path, names: Names, name_column: str | None, below: str, budget: Budget
) -> int:
    image_column, label_column, labels = _columns(table.schema_arrow, name_column)
    columns = [each for each in (image_column, label_column, name_column) if each]
    written = 0
    bar = tqdm(
        desc=f"read {table.metadata.num_rows} rows", total=table.metadata.num_rows, disable=None
    )
    with bar:
        for row in _rows(table, columns):
            bar.update()
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


def _rows(table: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
        yield from batch.to_pylist()


def _columns(schema: Any, name_column: str | None) -> tuple[str, str | None, list[str]]:
    """Return the image column, the label column if there is one, and the labels' names."""
    import pyarrow as pa

    shaped = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    if len(shaped) != 1:
        raise Refused(f"one column of images was expected, found {shaped or 'none'}")
    if name_column and name_column not in schema.names:
        raise Refused(f"it has no column {name_column}, but {', '.join(schema.names)}")
    label = next((name for name in ("label", "labels", "class") if name in schema.names), None)
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        names = []
    return shaped[0], label, [str(name) for name in names]


def _plain(text: str) -> str:
    """Return a name as it compares: letters and digits alone, in lower case."""
    return "".join(char for char in text.lower() if char.isalnum())
