"""A run on sentences from top to bottom: its files, its repetition, and what it trains."""

import csv
import json

import pytest
import torch

from so_clip.adapters.restore import open_saved
from so_clip.build import build_optimizer
from so_clip.clip.engine.fixed_entries import fixed_entries
from so_clip.config.resolve import resolved_placement
from so_clip.errors import InputError, RunFailed
from so_clip.results.run_folder import RunFolder
from so_clip.sentences.build import (
    assemble_model,
    base_of,
    build_model,
    encoder_of,
    load,
    tokenized,
)
from so_clip.sentences.identity import sentence_fingerprint, sentence_run_dir
from so_clip.sentences.run import SentenceRun
from tests.helpers.sentence_runs import data_of, do_run, places, settings_of


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return places(tmp_path_factory.mktemp("sentences"))


def test_a_run_leaves_its_files_and_is_not_repeated(options):
    result = do_run([*options, "method=so", "optimizer.density_ratio=0.05", "optimizer.T=2"])
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["task"] == "sentences"
    assert metrics["steps"] == 4
    assert metrics["accuracy_low_percent"] < metrics["accuracy_percent"]
    assert metrics["accuracy_percent"] < metrics["accuracy_high_percent"]
    assert metrics["majority_percent"] == pytest.approx(100 * 6 / 11)
    assert not [key for key in metrics if key.startswith("zero_shot")]
    with (result.folder / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    right = sum(row["label_name"] == row["prediction_name"] for row in predictions)
    assert [int(row["row"]) for row in predictions] == list(range(11))
    assert metrics["accuracy_percent"] == pytest.approx(100 * right / 11)
    draw = json.loads((result.folder / "fewshot.json").read_text())
    assert len(draw["rows"]) == 8
    assert draw["counts"] == [4, 4]
    names = {"config.yaml", "history.csv", "changed.csv", "provenance.json", "summary.txt"}
    assert names < {file.name for file in result.folder.iterdir()}
    again = do_run([*options, "method=so", "optimizer.density_ratio=0.05", "optimizer.T=2"])
    assert again.skipped
    assert again.folder == result.folder
    assert "95 % interval" in again.table


@pytest.mark.slow
def test_equal_settings_give_equal_predictions_in_another_folder(options, tmp_path):
    here = do_run([*options, "method=lora", "adapter.rank=2"])
    there = do_run([*options, "method=lora", "adapter.rank=2", f"results_dir={tmp_path}"])
    for name in ("history.csv", "predictions.csv"):
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes()


def test_the_global_random_state_decides_nothing_and_stays(options, tmp_path):
    here = do_run([*options, "method=adamw"])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    there = do_run([*options, "method=adamw", f"results_dir={tmp_path}"])
    assert torch.equal(before, torch.get_rng_state())
    assert here.metrics["final_loss"] == there.metrics["final_loss"]


def interrupted(words, steps):
    """Begin a run, and interrupt it in the middle of an epoch, after some steps."""
    settings = resolved_placement(settings_of(words))
    data, model = data_of(settings), build_model(settings, data_of(settings))
    fingerprint = sentence_fingerprint(settings, data, base_of(model))
    folder = RunFolder(sentence_run_dir(settings, fingerprint))
    tokens = tokenized(settings, data, encoder_of(model))
    run = SentenceRun(settings, data, model, tokens, folder, fingerprint)
    whole_epoch, left = run.batches.epoch, iter(range(steps))

    def epoch():
        for batch in whole_epoch():
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield batch

    run.batches.epoch = epoch
    with folder.claimed(), pytest.raises(KeyboardInterrupt):
        run.do()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ("method=so", "optimizer.density_ratio=0.05", "optimizer.T=2"),
        ("method=lora", "adapter.dropout=0.3", "memory=small"),
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, method, tmp_path):
    words = [*options, *method, "schedule.max_steps=18", "checkpoint_seconds=1e-6"]
    whole = do_run(words)
    words.append(f"results_dir={tmp_path}")
    interrupted(words, 15)
    (checkpoint,) = tmp_path.glob("*/checkpoint.pt")
    assert len(torch.load(checkpoint)["states"]["recorder"]["losses"]) == 15
    resumed = do_run(words)
    assert not resumed.skipped
    for name in ("history.csv", "predictions.csv", "changed.csv"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_training_drops_values_and_evaluation_does_not(options):
    settings = settings_of([*options, "method=adamw"])
    model = build_model(settings, data_of(settings))
    tokens_B3L = torch.ones(2, 3, 5, dtype=torch.int64)
    assert not torch.equal(model.classifier(tokens_B3L), model.classifier(tokens_B3L))
    model.classifier.eval()
    assert torch.equal(model.classifier(tokens_B3L), model.classifier(tokens_B3L))


def made_model(options, *words):
    settings = settings_of([*options, *words])
    return assemble_model(settings, load(settings, classes=2))


def dense_names(options, *words):
    return made_model(options, *words).dense


def test_beside_the_adapter_train_all_vectors_and_the_head_or_the_head_or_nothing(options):
    head = {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
        *("classifier.weight", "classifier.bias"),
    }
    for method in ("so", "lora"):
        dense = dense_names(options, f"method={method}", "dense_rest=true")
        # 2 blocks: 6 biases, 2 norms of 2 vectors; the norm after the embeddings.
        assert len(dense) == 2 * (6 + 4) + 2 + len(head)
        assert head < dense
        assert dense_names(options, f"method={method}", "dense_rest=head") == head
        assert dense_names(options, f"method={method}", "dense_rest=false") == frozenset()


def test_what_the_adapter_changes_in_another_way_is_not_trained_densely_too(options):
    words = ("method=sparta", "adapter.roles=[head,norm]", "adapter.density_ratio=0.02")
    model = made_model(options, *words)
    held = {entries.name for entries in fixed_entries(model.classifier.backbone.model)}
    assert "classifier.weight" in held
    assert not held & model.dense
    assert "bert.pooler.dense.weight" in model.dense


@pytest.mark.parametrize("method", ["so", "so_no_moment", "so_age"])
def test_dense_weights_have_the_moments_of_adam_whatever_the_sparse_ones_have(options, method):
    settings = settings_of([*options, f"method={method}", "optimizer.bias_correction=twice"])
    optimizer = build_optimizer(settings.method.optimizer, made_model(options, f"method={method}"))
    sparse, dense = optimizer.param_groups
    assert (dense["density_ratio"], dense["bias_correction"]) == (1, "step")
    weight, gradient = dense["params"][0], torch.randn_like(dense["params"][0])
    expected = torch.nn.Parameter(weight.detach().clone())
    adam = torch.optim.Adam([expected], lr=dense["lr"])
    for scale in (1.0, 0.1):
        weight.grad, expected.grad = scale * gradient, scale * gradient
        optimizer.step()
        adam.step()
    torch.testing.assert_close(weight, expected)
    assert sparse["bias_correction"] == "twice"


def test_interpolation_is_about_the_weights_of_the_adapter_alone(options):
    model = made_model(options, "method=wise_ft", "adapter.interpolation=0")
    model.adapter.start(model.classifier, None)
    before = {name: value.detach().clone() for name, value in model.parameters.items()}
    with torch.no_grad():
        for value in model.parameters.values():
            value.add_(1)
    model.adapter.finish(model.classifier)
    for name, value in model.parameters.items():
        assert torch.equal(value, before[name] + 1 if name in model.dense else before[name])


def test_a_memory_mode_that_an_encoder_cannot_have_is_refused(options):
    settings = settings_of([*options, "method=adamw", "memory=small"])
    encoder = load(settings, classes=2)
    encoder.model.bert.encoder.gradient_checkpointing = True
    with pytest.raises(InputError, match="memory=small"):
        assemble_model(settings, encoder)


def test_methods_that_need_clip_are_refused(options):
    for method in ("coop", "tip_adapter", "clip_lora", "zero_shot", "smat_masks"):
        with pytest.raises(InputError, match=f"method={method}"):
            do_run([*options, f"method={method}"])


FEW = ("so", "lora", "magnitude", "bitfit", "head")
OTHERS = [
    *("adalora", "adam", "adamw", "delora", "dora", "fourierft", "full", "galore", "ia3"),
    *("last_blocks", "layer_norm", "loha", "lokr", "miss", "oft", "randlora", "relora", "sgd"),
    *("shira", "so_age", "so_dense_moment", "so_importance", "so_no_moment", "so_official"),
    *("so_static", "sparta", "vera", "wise_ft"),
]
METHODS = [*FEW, *(pytest.param(method, marks=pytest.mark.slow) for method in OTHERS)]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_that_trains_an_encoder_runs_on_sentences(options, method):
    small = {"fourierft": ["adapter.frequencies=20"], "oft": ["adapter.block_size=8"]}
    metrics = do_run([*options, f"method={method}", *small.get(method, [])]).metrics
    assert metrics["steps"] == 4
    assert 0 < metrics["changed_parameters"] <= metrics["trainable_parameters"]


def test_an_epoch_ends_no_training_that_stops_at_a_batch(options):
    words = [*options, "method=adamw", "schedule.max_steps=40", "schedule.stop_loss=0.6"]
    metrics = do_run(words).metrics
    assert metrics["stop_reason"] == "stop_loss"
    assert metrics["final_loss"] <= 0.6


def test_answers_that_the_last_step_has_spoiled_end_the_run(options, tmp_path):
    spoiled = ["method=adamw", "optimizer.lr=1e30", "schedule.max_steps=1"]
    with pytest.raises(RunFailed, match=r"answers are not finite numbers.*optimizer\.lr"):
        do_run([*options, *spoiled, f"results_dir={tmp_path}"])
    (folder,) = tmp_path.iterdir()
    names = {file.name for file in folder.iterdir()}
    assert {"error.json", "history.csv"} <= names
    assert "metrics.json" not in names


def test_runs_on_leftover_pairs_say_so(options):
    assert do_run([*options, "method=head", "split=leftover"]).metrics["tested_on"] == "leftover"


def test_the_adapted_model_is_saved_as_a_folder_that_a_run_loads(options):
    saved = do_run([*options, "method=lora", "save=true"])
    assert saved.metrics["model_mib"] > 0
    settings = settings_of([*options, f"model.source=folder:{saved.folder / 'model'}"])
    model = load(settings, classes=2).model
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_commands_for_saved_adapters_say_where_the_model_is(options):
    run = do_run([*options, "method=head"]).folder
    with pytest.raises(InputError, match="is a run on sentences, which writes no adapter"):
        open_saved(run)
