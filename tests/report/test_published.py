"""Published figures: kept apart by their source, and beside runs of the same kind only."""

import math
from pathlib import Path

import pandas as pd
import pytest

from so_clip.report.published import add_published, figures
from so_clip.report.read import read_runs
from so_clip.report.tables import AVERAGE, Row, Table, make_tables
from tests.helpers.report_runs import PAPER, VIT, write_run


def _accuracy(root: Path) -> Table:
    runs = read_runs(root)
    tables = add_published(make_tables(runs), runs)
    (table,) = (each for each in tables if each.figure.name == "accuracy")
    return table


def _published(table: Table, shots: int = 4) -> list[Row]:
    return [
        row for block in table.blocks if block.shots == shots for row in block.rows if row.source
    ]


def test_figures_are_figures():
    known = figures()
    assert known["accuracy_percent"].between(0, 100).all()
    assert set(known["backbone"]) == {"ViT-B/16", "ViT-B/32", "ViT-L/14"}
    assert set(known["dataset"]) == {*PAPER, AVERAGE}
    assert set(known["shots"]) == {0, 1, 2, 4, 8, 16}
    key = ["source", "backbone", "shots", "method", "dataset"]
    assert not known.duplicated(key).any()
    assert known["source"].str.len().between(1, 60).all()


def test_averages_are_those_of_their_datasets():
    """Read off the same figure, or printed in the same table, they agree to the reading's error."""
    wide = figures().pivot_table(
        index=["source", "backbone", "shots", "method"],
        columns="dataset",
        values="accuracy_percent",
    )
    whole = wide[list(PAPER)].dropna().index
    assert len(whole) == 31
    own = wide.loc[whole, list(PAPER)].mean(axis=1)
    assert (own - wide.loc[whole, AVERAGE]).abs().max() < 0.2


def test_the_so_papers_lora_and_clip_lora_are_not_the_same_row(tmp_path):
    for dataset in PAPER:
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT, accuracy_percent=99.0)
    rows = _published(_accuracy(tmp_path))
    averages = {
        (row.title, row.source): row.cells[AVERAGE].mean for row in rows if AVERAGE in row.cells
    }
    so = "README of nairouz/SO"
    assert averages["LoRA (as run for the SO paper)", so] == 75.4
    assert averages["SO", so] == 78.9
    clip_lora = {source: each for (title, source), each in averages.items() if title == "CLIP-LoRA"}
    assert len(clip_lora) == 3
    assert all(77 < each < 78 for each in clip_lora.values())


def test_published_rows_say_whose_they_are_how_sure_and_never_compete(tmp_path):
    for name, accuracy in (("so", 1.0), ("sgd", 2.0)):
        for dataset in PAPER:
            write_run(
                tmp_path,
                f"{name}-{dataset}",
                method=name,
                method_title=name.upper(),
                dataset=dataset,
                backbone=VIT,
                accuracy_percent=accuracy,
            )
    table = _accuracy(tmp_path)
    rows = _published(table)
    labels = {row.label for row in rows}
    assert "SO [published: README of nairouz/SO, uncertainty not given]" in labels
    assert "CLIP-LoRA [published: arXiv 2405.18541, Figure 2, digitised, ±0.1]" in labels
    assert not any(cell.best for row in rows for cell in row.cells.values())
    own = [row for row in table.blocks[0].rows if not row.source]
    assert [(row.title, row.cells["dtd"].best) for row in own] == [("SGD", True), ("SO", False)]
    assert any("other people's figures" in note for note in table.notes)


def test_the_range_of_a_rows_uncertainty_is_told(tmp_path):
    for dataset in PAPER:
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT, shots=1)
    labels = {row.label for row in _published(_accuracy(tmp_path), shots=1)}
    assert "CLIP-LoRA [published: arXiv 2405.18541, Figure 2, digitised, ±0.6 to 1.2]" in labels


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": {"architecture": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"}},
        {"backbone": VIT | {"architecture": "RN50"}},
        {"backbone": VIT, "shots": 3},
        {"backbone": VIT, "dataset": "digits"},
    ],
)
def test_other_backbones_weights_shots_and_datasets_have_none(tmp_path, changes):
    write_run(tmp_path, "a", **{"dataset": "dtd"} | changes)
    table = _accuracy(tmp_path)
    assert _published(table, changes.get("shots", 4)) == []
    assert table.notes == ()


@pytest.mark.parametrize(
    "backbone",
    [
        VIT,
        VIT | {"architecture": "ViT-B-16"},
    ],
)
def test_names_of_one_backbone_are_one(tmp_path, backbone):
    write_run(tmp_path, "a", dataset="dtd", backbone=backbone)
    assert _published(_accuracy(tmp_path))


@pytest.mark.parametrize("pretrained", [None, "openai"])
def test_weights_of_a_local_file_are_not_taken_for_openais(tmp_path, pretrained):
    mine = VIT | {"pretrained": pretrained, "checkpoint": "mine.pt"}
    write_run(tmp_path, "a", dataset="dtd", backbone=mine)
    table = _accuracy(tmp_path)
    assert _published(table) == []
    assert any("backbone.pretrained=openai" in note for note in table.notes)


def test_a_table_of_some_datasets_averages_what_it_shows(tmp_path):
    for dataset in ("dtd", "eurosat"):
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT)
    rows = {(row.title, row.source): row for row in _published(_accuracy(tmp_path))}
    so = rows["SO", "README of nairouz/SO"].cells
    assert so[AVERAGE].mean == pytest.approx((87.7 + 66.4) / 2)
    assert set(so) == {"dtd", "eurosat", AVERAGE}
    # Whose averages alone are published has nothing to show here.
    assert not any(source == "README of HealthX-Lab/CLIP-SVD" for _, source in rows)


def test_other_tables_have_none(tmp_path):
    for dataset in PAPER:
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT)
    runs = read_runs(tmp_path)
    tables = add_published(make_tables(runs), runs)
    assert all(not _published(each) for each in tables if each.figure.name != "accuracy")


def test_uncertainty_is_kept_where_it_is_known():
    known = figures()
    digitised = known["source"].str.contains("digitised")
    assert known.loc[digitised, "uncertainty_points"].notna().all()
    assert known.loc[~digitised, "uncertainty_points"].isna().all()
    assert isinstance(known, pd.DataFrame)
    assert math.isclose(known.loc[digitised, "uncertainty_points"].min(), 0.1)
