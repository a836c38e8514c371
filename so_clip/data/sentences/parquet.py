"""Examples from parquet files, as the Hugging Face hub has them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from so_clip.data.sentences.card import ParquetFiles
from so_clip.data.sentences.pairs import MAX_ROWS, Pair, label_of, sentence_of
from so_clip.errors import InputError, reason_of
from so_clip.system.commands import install
from so_clip.system.safe_open import MAX_LIST_BYTES, read_plain

# A damaged or hostile file can claim more memory than there is.
_MAX_UNPACKED_BYTES = 8 * MAX_LIST_BYTES


class NoPyarrow(InputError):
    """A parquet file cannot be read because pyarrow is not installed."""


def read_parquet(
    files: Sequence[Path], layout: ParquetFiles, label_names: Sequence[str]
) -> list[Pair]:
    """Return the examples of one split: the rows of its files, one file after the other.

    Raises:
        InputError: pyarrow is not installed, a file is damaged or has other columns, a value is no
            text or no label, or there is no example.
    """
    pairs: list[Pair] = []
    for file in files:
        first = len(pairs)
        for row, (sentence, second, label) in enumerate(_rows(file, layout)):
            place = f"{file}: row {row} (counted from 0)"
            pairs.append(
                Pair(
                    sentence_of(sentence, layout.first, place),
                    None if layout.second is None else sentence_of(second, layout.second, place),
                    label_of(label, label_names, place),
                    first + row,
                )
            )
        if len(pairs) > MAX_ROWS:
            raise InputError(f"{file}: there are more than {MAX_ROWS} examples.")
    if not pairs:
        raise InputError(f"{files[0]}: holds no example. Get the file again.")
    return pairs


def _rows(file: Path, layout: ParquetFiles) -> list[tuple[Any, Any, Any]]:
    """Return first sentence, second sentence and label of each row."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise NoPyarrow(
            f"{file}: a parquet file needs pyarrow ({error}): {install('so-clip[text]')}; or use "
            "GLUE's tsv files."
        ) from error
    try:
        with pq.ParquetFile(io.BytesIO(read_plain(file, MAX_LIST_BYTES))) as opened:
            _check_size(file, opened.metadata)
            names = opened.schema_arrow.names
            columns = [layout.first, layout.second or layout.first, layout.label]
            for column in columns:
                if names.count(column) != 1:
                    raise InputError(
                        f"{file}: there is no column {column!r}, or several. The columns are "
                        f"{', '.join(names[:20]) or 'none'}."
                    )
            table = opened.read(columns=list(dict.fromkeys(columns)))
            values = [table.column(column).to_pylist() for column in columns]
    except InputError:
        raise
    # Dates and time zones that Python does not have raise OverflowError and LookupError.
    except (OSError, ValueError, OverflowError, LookupError, pa.ArrowException) as error:
        raise InputError(
            f"{file}: cannot be read as a parquet file: {reason_of(error)}. Get it again."
        ) from error
    return list(zip(*values, strict=True))


def _check_size(file: Path, metadata: Any) -> None:
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(index).total_byte_size for index in groups)
    if metadata.num_rows > MAX_ROWS or size > _MAX_UNPACKED_BYTES:
        raise InputError(
            f"{file}: claims {metadata.num_rows} rows of {size / 2**20:.0f} MiB. At most "
            f"{MAX_ROWS} rows of {_MAX_UNPACKED_BYTES // 2**20} MiB are read."
        )
