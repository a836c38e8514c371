"""The experiment on RTE: its plan, its tables, and the whole with a tiny random encoder."""

import json
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the plot needs the pretrain extra")
pytest.importorskip("transformers", reason="encoders need the text extra")

from scripts import rte_experiment
from scripts.rte import plan, runs, tables
from so_clip.config.compose import compose
from so_clip.config.sentence_parse import sentence_settings
from so_clip.config.trees import SENTENCES
from so_clip.results.interval import wilson
from tests.helpers.scripts_in_process import InProcess
from tests.helpers.tiny_encoders import PAIRS, encoder_folder

RATES = {"so": 6e-4, "lora": 6e-4, "adamw": 1e-4, "bitfit": 1e-3, "head": 1e-3}


def test_an_experiment_that_stops_early_has_all_methods_with_fewer_seeds():
    work = plan.table_work((), RATES, seeds=(1, 2), grid_seeds=(1, 2))
    words = [" ".join(each.words) for each in work]
    assert len({*words}) == len(words)
    methods, cells = len(plan.contenders()), len([*plan.grid()])
    shared = len(plan.DENSITIES)  # the grid's cells at the T of the methods
    assert len(words) == 2 * (methods + cells - shared)
    assert all("seed=1" in text for text in words[: methods + cells - shared])
    assert all("seed=2" in text for text in words[methods + cells - shared :])


def test_no_rate_is_chosen_on_validation_pairs_or_by_a_seed_of_the_tables():
    work = plan.rates_work(())
    assert len(work) == sum(map(len, plan.RATES.values()))
    for each in work:
        assert {"split=leftover", f"seed={plan.TUNING_SEED}"} <= {*each.words}
    assert plan.TUNING_SEED not in plan.SEEDS


@pytest.mark.slow
def test_every_contender_composes_with_its_settings():
    for each in plan.table_work(("model=minilm",), RATES, seeds=(3,), grid_seeds=()):
        settings = sentence_settings(compose(each.words, tree=SENTENCES))
        assert (settings.data.seed, settings.data.split) == (3, "validation")
        assert settings.method.adapter.options.get("rank") == (
            settings.method.adapter.options.get("alpha")
        )
    first, *_ = plan.official_work(("model=minilm",))
    settings = sentence_settings(compose(first.words, tree=SENTENCES))
    assert (settings.data.subset, settings.data.seed) == ("official", 42)
    assert settings.method.optimizer.options["density_ratio"] == 1e-4


def test_the_best_rate_is_chosen_and_of_equal_rates_the_smallest():
    tried = pd.DataFrame(
        [("so", 1e-3, 52.0), ("so", 1e-4, 54.0), ("so", 1e-2, 54.0), ("head", 1e-3, 50.0)],
        columns=["method", "lr", "accuracy_percent"],
    )
    assert tables.chosen_rates(tried) == {"so": 1e-4, "head": 1e-3}


def made_runs() -> pd.DataFrame:
    """Return rows as `runs.finished` does: SO at two T with two and three seeds, and a head."""
    return pd.DataFrame(
        {
            "method": "so" if interval else "head",
            "density_ratio": 1e-4 if interval else None,
            "T": interval,
            "rank": None,
            "lr": 1e-3,
            "seed": seed,
            "test_images": 277,
            "accuracy_percent": accuracy,
            "majority_percent": 52.7,
            "trainable_parameters": 10,
            "steps": 40,
            "final_loss": 0.1,
            "train_seconds": 30.0,
            "peak_memory_mib": 300.0,
            "truncated_test": 33,
        }
        for interval, seed, accuracy in [
            *((5, 1, 50.0), (5, 2, 54.0), (5, 3, 60.0), (10, 1, 51.0), (10, 2, 53.0)),
            *((None, 1, 49.0), (None, 2, 51.0)),
        ]
    )


def test_rows_have_means_over_seeds_and_the_interval_of_one_test_set():
    so, head = tables.method_rows(made_runs())
    assert (so["title"], so["seeds"], so["lr"]) == ("SO, density 1e-4", 3, 1e-3)
    assert so["accuracy_percent"] == pytest.approx(164 / 3)
    # 277 pairs, not 3 x 277: seeds share their test pairs.
    assert (so["items_low_percent"], so["items_high_percent"]) == pytest.approx(
        wilson(1.64 / 3 * 277, 277)
    )
    assert head["accuracy_percent_std"] == pytest.approx(2**0.5)


def test_cells_of_the_grid_have_the_same_seeds_and_the_published_values():
    first, second = tables.grid_rows(made_runs())
    assert (first["T"], first["accuracy_percent"], first["seeds"]) == (5, 52.0, 2)
    assert (second["T"], second["accuracy_percent"], second["seeds"]) == (10, 52.0, 2)
    assert first["published_accuracy_percent"] == 57.0
    assert second["published_steps"] == 1372


def test_only_runs_at_the_chosen_rate_and_with_the_asked_seeds_count():
    assert len(tables.at_rates(made_runs(), {"so": 1e-3, "head": 1e-2}, [1, 3])) == 3


def write_rte(folder: Path, pairs: int) -> None:
    """Write small parquet files in the layout of the hub."""
    folder.mkdir(parents=True)
    for split, count in (("train", pairs), ("validation", 8)):
        first, second = zip(*(PAIRS[at % len(PAIRS)] for at in range(count)), strict=True)
        columns = {"sentence1": first, "sentence2": second}
        labels = [at // 2 % 2 for at in range(count)]
        frame = pd.DataFrame({**columns, "label": labels, "idx": range(count)})
        frame.to_parquet(folder / f"{split}.parquet")


@pytest.mark.slow
def test_the_whole_experiment_makes_its_tables_and_continues(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft", reason="LoRA needs the methods extra")
    write_rte(tmp_path / "data" / "rte", 48)
    model = encoder_folder(tmp_path / "tiny", max_position_embeddings=128)
    monkeypatch.setattr(runs, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(plan, "RATES", {method: (rate,) for method, rate in RATES.items()})
    monkeypatch.setattr(plan, "GRID_DENSITIES", (1e-2, 1e-3))
    monkeypatch.setattr(plan, "OFFICIAL_STEPS", 2)
    arguments = ["--model", str(model), "--steps", "2", "--seeds", "1", "2"]
    arguments += ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    rte_experiment.main([*arguments, "--minutes", "0"])
    assert "no table" in capsys.readouterr().out
    rte_experiment.main([*arguments, "--only", "official"])
    assert [file.name for file in (tmp_path / "out" / "tables").iterdir()] == ["rte_official.csv"]
    rte_experiment.main(arguments)
    folder = tmp_path / "out" / "tables"
    rates, methods, tests, grid, official = (
        pd.read_csv(folder / f"rte_{name}.csv")
        for name in ("rates", "methods", "tests", "kappa_t", "official")
    )
    assert rates["is_chosen"].all()
    assert set(rates["tested_on"]) == {"leftover"}
    assert list(methods["title"]) == [each.title for each in plan.contenders()]
    assert set(methods["seeds"]) == {2}
    assert len(tests) == 2 * 10 * 9 // 2  # pairs, over seeds and over items
    assert len(grid) == 6
    assert grid["published_steps"].notna().sum() == 3
    assert len(official) == 7
    for table in (rates, methods, tests, grid, official):
        assert (table["threads"] == 1).all()
        assert table["hardware"].notna().all()
        assert table["command"].str.startswith("python scripts/rte_experiment.py").all()
    assert (tmp_path / "out" / "figures" / "rte_methods.png").stat().st_size < 100_000
    files = sorted((tmp_path / "out" / "runs").rglob("metrics.json"))
    times = [file.stat().st_mtime_ns for file in files]
    (folder / "rte_methods.csv").unlink()
    rte_experiment.main(arguments)
    assert [file.stat().st_mtime_ns for file in files] == times
    pd.testing.assert_frame_equal(pd.read_csv(folder / "rte_methods.csv"), methods)
    # No pair that chose a rate is a test pair or a training pair.
    for file in files:
        if "rates" in file.parts:
            draw = json.loads((file.parent / "fewshot.json").read_text())
            assert not {*draw["rows"]} & {*draw["test_rows"]}
