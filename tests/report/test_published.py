"""Published scores: separate by source, and only beside runs of the same kind."""

import math
from pathlib import Path

import pytest

from so_clip.report.published import add_published, published_scores
from so_clip.report.read import read_runs
from so_clip.report.table import Row, Table
from so_clip.report.tables import AVERAGE, make_tables
from tests.helpers.report_runs import PAPER, VIT, write_run


def _accuracy(root: Path) -> Table:
    runs = read_runs(root)
    tables = add_published(make_tables(runs), runs)
    (table,) = (table for table in tables if table.measure.name == "accuracy")
    return table


def _published(table: Table, shots: int = 4) -> list[Row]:
    return [
        row for block in table.blocks if block.shots == shots for row in block.rows if row.source
    ]


def test_every_published_score_is_a_percentage_with_a_source():
    known = published_scores()
    assert known["accuracy_percent"].between(0, 100).all()
    assert set(known["backbone"]) == {"ViT-B/16", "ViT-B/32", "ViT-L/14"}
    assert set(known["dataset"]) == {*PAPER, AVERAGE}
    assert set(known["shots"]) == {0, 1, 2, 4, 8, 16}
    key = ["source", "backbone", "shots", "method", "dataset"]
    assert not known.duplicated(key).any()
    assert known["source"].str.len().between(1, 60).all()


def test_published_averages_agree_with_their_datasets():
    wide = published_scores().pivot_table(
        index=["source", "backbone", "shots", "method"],
        columns="dataset",
        values="accuracy_percent",
    )
    whole = wide[list(PAPER)].dropna().index
    assert len(whole) == 31
    means = wide.loc[whole, list(PAPER)].mean(axis=1)
    assert (means - wide.loc[whole, AVERAGE]).abs().max() < 0.2


def test_the_so_papers_lora_and_clip_lora_are_different_rows(tmp_path):
    for dataset in PAPER:
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT, accuracy_percent=99.0)
    rows = _published(_accuracy(tmp_path))
    averages = {
        (row.title, row.source): row.cells[AVERAGE].mean for row in rows if AVERAGE in row.cells
    }
    so = "README of nairouz/SO"
    assert averages["LoRA (as run for the SO paper)", so] == 75.4
    assert averages["SO", so] == 78.9
    clip_lora = [mean for (title, _), mean in averages.items() if title == "CLIP-LoRA"]
    assert len(clip_lora) == 3
    assert all(77 < mean < 78 for mean in clip_lora)


def test_published_rows_show_source_and_uncertainty_and_are_never_best(tmp_path):
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
    runs = [row for row in table.blocks[0].rows if not row.source]
    assert [(row.title, row.cells["dtd"].best) for row in runs] == [("SGD", True), ("SO", False)]
    assert any("other people's runs" in note for note in table.notes)


def test_a_row_shows_the_range_of_its_uncertainty(tmp_path):
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
def test_other_backbones_weights_shots_and_datasets_have_no_published_rows(tmp_path, changes):
    write_run(tmp_path, "a", **{"dataset": "dtd"} | changes)
    table = _accuracy(tmp_path)
    assert _published(table, changes.get("shots", 4)) == []
    assert table.notes == ()


@pytest.mark.parametrize("backbone", [VIT, VIT | {"architecture": "ViT-B-16"}])
def test_both_names_of_a_backbone_match(tmp_path, backbone):
    write_run(tmp_path, "a", dataset="dtd", backbone=backbone)
    assert _published(_accuracy(tmp_path))


@pytest.mark.parametrize("pretrained", [None, "openai"])
def test_weights_from_a_local_file_are_not_assumed_to_be_openais(tmp_path, pretrained):
    local = VIT | {"pretrained": pretrained, "checkpoint": "local.pt"}
    write_run(tmp_path, "a", dataset="dtd", backbone=local)
    table = _accuracy(tmp_path)
    assert _published(table) == []
    assert any("backbone.pretrained=openai" in note for note in table.notes)


def test_a_table_with_some_datasets_averages_its_own_columns(tmp_path):
    for dataset in ("dtd", "eurosat"):
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT)
    rows = {(row.title, row.source): row for row in _published(_accuracy(tmp_path))}
    so = rows["SO", "README of nairouz/SO"].cells
    assert so[AVERAGE].mean == pytest.approx((87.7 + 66.4) / 2)
    assert set(so) == {"dtd", "eurosat", AVERAGE}
    # This source published averages only.
    assert not any(source == "README of HealthX-Lab/CLIP-SVD" for _, source in rows)


def test_only_accuracy_tables_have_published_rows(tmp_path):
    for dataset in PAPER:
        write_run(tmp_path, dataset, dataset=dataset, backbone=VIT)
    runs = read_runs(tmp_path)
    tables = add_published(make_tables(runs), runs)
    assert not any(_published(table) for table in tables if table.measure.name != "accuracy")


def test_digitised_scores_have_an_uncertainty_and_others_have_none():
    known = published_scores()
    digitised = known["source"].str.contains("digitised")
    assert known.loc[digitised, "uncertainty_points"].notna().all()
    assert known.loc[~digitised, "uncertainty_points"].isna().all()
    assert math.isclose(known.loc[digitised, "uncertainty_points"].min(), 0.1)
