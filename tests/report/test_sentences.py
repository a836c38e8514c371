"""Tables, tests and published rows of runs on sentences, beside runs on images."""

import math

import pandas as pd
import pytest
from scipy import stats

from so_clip.report.averages import AVERAGE
from so_clip.report.formats.files import write_tables
from so_clip.report.formats.text import to_markdown
from so_clip.report.missing import add_missing
from so_clip.report.pairs import pairs_of
from so_clip.report.published import add_published, published_sentences
from so_clip.report.read import read_runs
from so_clip.report.sentences import LEAST_WINS
from so_clip.report.significance import compare
from so_clip.report.tables import make_tables
from so_clip.results.interval import wilson
from tests.helpers.report_runs import squeezed, write_run
from tests.helpers.sentence_folders import ITEMS, write_answers, write_sentence_run


def _accuracy(root, backbone="minilm"):
    runs = read_runs(root)
    tables, _ = add_missing(make_tables(runs), runs)
    (table,) = (
        table
        for table in add_published(tables, runs)
        if table.measure.name == "accuracy" and table.backbone == backbone
    )
    return table


def _rows(table, published=False):
    return [row for block in table.blocks for row in block.rows if bool(row.source) == published]


def test_a_table_says_examples_and_has_the_interval_over_test_examples(tmp_path):
    for seed, right in ((1, 150), (2, 155), (3, 160)):
        write_sentence_run(tmp_path, seed=seed, right=right)
    table = _accuracy(tmp_path)
    assert [block.title for block in table.blocks] == ["32 examples"]
    (so,) = _rows(table)
    cell = so.cells["rte"]
    assert cell.mean == pytest.approx(100 * 155 / ITEMS)
    assert cell.std == pytest.approx(100 * 5 / ITEMS)
    low, high = cell.interval
    expected = stats.binomtest(155, ITEMS).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high))
    text = squeezed(to_markdown(table))
    assert "| examples | method | rte | memory (MiB) | training (s) | steps |" in text
    assert r"| 55.96 ± 1.81 \[50.1, 61.7\] |" in text
    notes = " ".join(table.notes)
    assert "training examples together, not of each class" in notes
    assert "one of 277 test examples is 0.36 points" in notes
    assert "The largest class has 52.71 % of them; the intervals of 1 of 1 rows hold it." in notes


def test_rows_that_a_test_cannot_tell_from_the_best_are_counted(tmp_path):
    best = 160
    for method, right in (("a", best), ("b", best - LEAST_WINS + 1), ("c", best - LEAST_WINS)):
        write_sentence_run(tmp_path, method=method, title=method, right=right)
    assert stats.binomtest(LEAST_WINS, LEAST_WINS).pvalue < 0.05
    assert stats.binomtest(LEAST_WINS - 1, LEAST_WINS - 1).pvalue > 0.05
    (note,) = (note for note in _accuracy(tmp_path).notes if "two single runs" in note)
    assert "differ by 6 test examples (2.17 points)" in note
    assert "1 of the 2 other rows are closer" in note


def test_test_sets_of_different_sizes_have_no_interval(tmp_path):
    write_sentence_run(tmp_path, seed=1)
    write_sentence_run(tmp_path, seed=2, test_images=100)
    (row,) = _rows(_accuracy(tmp_path))
    assert row.cells["rte"].interval is None


def test_cut_sentences_are_counted_below_the_table(tmp_path):
    write_sentence_run(tmp_path, seed=1)
    write_sentence_run(tmp_path, seed=2, truncated_train=1, truncated_test=4)
    note = "1 of 2 runs cut examples to model.max_length, up to 1 training examples and 4 test"
    assert any(text.startswith(note) for text in _accuracy(tmp_path).notes)


def test_draws_and_switches_of_the_released_code_name_a_row(tmp_path):
    write_sentence_run(tmp_path, subset="official", model_options={"token_types": False})
    (row,) = _rows(_accuracy(tmp_path))
    assert row.variant == "model.token_types=False, subset=official"


def test_runs_on_sentences_and_on_images_are_never_in_one_table_or_average(tmp_path):
    """Both kinds have the same backbone name, method, shots and seed."""
    write_sentence_run(tmp_path, model="tiny", right=150)
    for dataset in ("dtd", "eurosat"):
        write_run(tmp_path, dataset, dataset=dataset, shots=32, zero_shot_accuracy_percent=40.0)
    images, sentences = _accuracy(tmp_path, "tiny"), _accuracy(tmp_path, "tiny (sentences)")
    assert images.datasets == ["eurosat", "dtd"]
    assert sentences.datasets == ["rte"]
    assert [block.title for block in images.blocks] == ["zero-shot", "32 shots"]
    assert [block.title for block in sentences.blocks] == ["32 examples"]
    (average,) = (row.cells[AVERAGE] for row in _rows(images) if row.method == "so")
    assert average.mean == 50.0
    assert not any("steps" in row.cells for row in _rows(images))
    assert not any("Missing" in note for table in (images, sentences) for note in table.notes)
    comparisons, remarks = compare(read_runs(tmp_path))
    assert comparisons.empty or set(comparisons["backbone"]) == {"tiny"}
    assert not any("rte" in remark for remark in remarks)


def test_missing_runs_are_named_by_examples(tmp_path):
    for method, seed in (("a", 1), ("a", 2), ("b", 1)):
        write_sentence_run(tmp_path, method=method, title=method, seed=seed)
    assert "Missing at 32 examples: b: rte (seed 2)." in _accuracy(tmp_path).notes


def test_the_csv_names_the_task_only_if_there_are_sentences(tmp_path):
    write_run(tmp_path, "image")
    for has_sentences in (False, True):
        if has_sentences:
            write_sentence_run(tmp_path)
        out = tmp_path / f"out{has_sentences}"
        write_tables(make_tables(read_runs(tmp_path)), out, endings=())
        found = pd.read_csv(out / "accuracy.csv")
        assert ("task" in found) == has_sentences
    low, high = found.set_index("task").loc["sentences", ["low", "high"]]
    assert (low, high) == pytest.approx(wilson(150, ITEMS))


def test_examples_are_paired_by_their_row(tmp_path):
    """One seed: A is right on rows 0 to 149, B on rows 20 to 159."""
    write_sentence_run(tmp_path, method="a", title="A", right=150)
    write_sentence_run(tmp_path, method="b", title="B", right=140, first=20)
    runs = read_runs(tmp_path)
    comparisons, remarks = compare(runs)
    assert remarks == []
    (row,) = comparisons[comparisons["test"] == "examples"].to_dict("records")
    assert (row["wins"], row["losses"], row["seeds"]) == (20, 10, 1)
    assert row["p"] == pytest.approx(stats.binomtest(20, 30).pvalue)
    (part,) = pairs_of(runs.frame, comparisons)
    (pair,) = part.frame.to_dict("records")
    assert (part.name, pair["examples"], pair["dataset"]) == ("significance-sentences", 32, "rte")
    assert (pair["won"], pair["lost"]) == (20, 10)
    assert pair["difference (points)"] == pytest.approx(1000 / ITEMS)
    assert math.isnan(pair["p over seeds"])
    assert "image" not in part.caption


@pytest.mark.parametrize("change", ["rows", "labels"])
def test_other_rows_or_labels_are_not_compared(tmp_path, change):
    write_sentence_run(tmp_path, method="a", title="A")
    other = write_sentence_run(tmp_path, method="b", title="B")
    if change == "rows":
        write_answers(other, [True] * ITEMS, [*range(1, ITEMS + 1)])
    else:
        file = other / "predictions.csv"
        file.write_text(file.read_text().replace("\n7,1,", "\n7,0,"))
    comparisons, (remark,) = compare(read_runs(tmp_path))
    assert set(comparisons["test"]) == {"seeds"}
    assert remark.startswith("not compared over examples: ")
    assert "not tested on the same examples in the same order" in remark


def test_both_tasks_have_a_table_of_pairs(tmp_path):
    for method in "ab":
        write_sentence_run(tmp_path, method=method, title=method)
        write_run(tmp_path, method, method=method, method_title=method)
    runs = read_runs(tmp_path)
    parts = pairs_of(runs.frame, compare(runs)[0])
    assert [(part.name, list(part.frame["backbone"])) for part in parts] == [
        ("significance", ["tiny"]),
        ("significance-sentences", ["minilm"]),
    ]


def test_published_runs_are_whole_numbers_of_277_examples():
    known = published_sentences()
    assert len(known) == 13
    assert not known.duplicated(["model", "variant"]).any()
    items = known["accuracy_percent"] / 100 * known["test_examples"]
    rounded = (100 * items.round() / known["test_examples"]).round(1)
    assert (rounded == known["accuracy_percent"]).all()
    grid = known[known["method"] == "SO"].set_index("variant")
    # The dense weights alone decide the stop: steps are the same at two densities.
    for interval in (5, 10, 20):
        low, lower = (
            f"optimizer.T={interval}, optimizer.density_ratio={kappa}" for kappa in (1e-4, 1e-5)
        )
        assert grid["steps"][low] == grid["steps"][lower]


@pytest.mark.parametrize("model", ["bert_base", "minilm"])
def test_published_rows_of_another_model_say_so_and_are_never_best(tmp_path, model):
    write_sentence_run(tmp_path, model=model, right=100)
    write_sentence_run(tmp_path, model=model, right=90, method="lora", title="LoRA")
    table = _accuracy(tmp_path, model)
    rows = _rows(table, published=True)
    assert len(rows) == 13
    assert {row.label.count("other model") for row in rows} == {int(model != "bert_base")}
    assert all(
        "bert-base-uncased: github nairouz/SO at 385f4ab, one seed" in row.source for row in rows
    )
    (so,) = (row for row in rows if row.variant == "optimizer.T=5, optimizer.density_ratio=0.0001")
    assert (so.cells["rte"].mean, so.cells["steps"].mean) == (57.0, 1421)
    assert so.cells["rte"].interval == pytest.approx(wilson(158, ITEMS))
    assert not any(cell.best for row in rows for cell in row.cells.values())
    assert [row.title for row in _rows(table) if row.cells["rte"].best] == ["SO"]
    (note,) = (note for note in table.notes if note.startswith("Published rows"))
    assert "One of 277 examples is 0.36 points" in note
    assert "differ by 2.8 points at most: 8 examples" in note


@pytest.mark.parametrize("changes", [{"dataset": "mrpc"}, {"shots": 16}])
def test_other_datasets_and_numbers_of_examples_have_no_published_rows(tmp_path, changes):
    write_sentence_run(tmp_path, **changes)
    assert _rows(_accuracy(tmp_path), published=True) == []


def test_runs_on_left_over_examples_are_no_results(tmp_path):
    write_sentence_run(tmp_path / "test")
    write_sentence_run(tmp_path / "rates", tested_on="leftover")
    runs = read_runs(tmp_path)
    assert len(runs.frame) == 1
    assert runs.skipped == [
        f"{tmp_path / 'rates'}: 1 run not tested on test sentences but on others (leftover)."
    ]
