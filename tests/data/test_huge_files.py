"""Every file that is read whole has a limit: huge files are refused at once, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from so_clip.clip.loading.architecture import tiny_card
from so_clip.data.cards.card import load_card
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.plain_files import read_values
from so_clip.data.user.csv_list import list_csv
from so_clip.errors import InputError
from so_clip.prepare.parquet import listed_files
from so_clip.prepare.sources import SourceFailed
from so_clip.results.run_files import read_columns, read_metrics

READERS: dict[str, Callable[[Path], Any]] = {
    "names.yaml": lambda file: read_values(file, "dataset.class_names"),
    "names.json": lambda file: read_values(file, "dataset.class_names"),
    "names.txt": lambda file: read_values(file, "dataset.class_names"),
    "split.json": lambda file: read_split_file(file, load_card("eurosat")),
    "list.csv": lambda file: list_csv(file),
    "metrics.json": read_metrics,
    "predictions.csv": read_columns,
    "listing.json": lambda file: listed_files(file, "http://127.0.0.1:9/listing.json"),
    "card.yaml": lambda file: load_card("card", file.parent),
    "tiny.json": lambda file: tiny_card(file.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_a_huge_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises((InputError, SourceFailed)) as caught:
        READERS[name](tmp_path / name)
    assert name in str(caught.value)
    assert "larger than" in str(caught.value)
    assert ("Write it as JSON" in str(caught.value)) == (name == "names.yaml")
