"""The forecast of runs on sentences against real runs, and LoRA's counts on BERT-base."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.cli.forecast import table
from so_clip.data.sentences.card import Sizes, load_sentence_card
from so_clip.errors import InputError
from so_clip.forecast.sentences import fake_sentence_model, forecast_sentences
from tests.forecast.test_predict import MEMORY, TOLERANCE
from tests.helpers.command import call
from tests.helpers.sentence_runs import do_run, places, settings_of

# Every made pair is cut to this length, so a batch has no padding, as in a forecast.
LENGTH = "model.max_length=8"
METHODS = {
    "so": ["method=so", "optimizer.density_ratio=0.02", "optimizer.T=2"],
    "lora": ["method=lora", "adapter.rank=2"],
    "small": ["method=adamw", "memory=small"],
    "head": ["method=head"],
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*places(tmp_path_factory.mktemp("sentences")), LENGTH]


def _forecast(words: list[str]) -> dict[str, Any]:
    card = replace(load_sentence_card("rte"), sizes=Sizes(train=40, validation=11))
    return forecast_sentences(settings_of(words), card)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", METHODS)
def test_memory_and_disk_are_those_of_a_real_run(options: list[str], method: str) -> None:
    words = [*options, *METHODS[method]]
    folder = do_run(words).folder
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["truncated_train"] == 8
    expected = _forecast(words)
    peak = metrics["peak_memory_mib"]
    assert expected["peak_memory_mib"] == pytest.approx(peak, rel=TOLERANCE)
    for part in MEMORY:
        close = pytest.approx(metrics[part], rel=TOLERANCE, abs=0.01 * peak)
        assert expected[part] == close, part
    for key in ("trainable_parameters", "dense_parameters", "test_images", "steps"):
        assert expected[key] == metrics[key], key
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    assert size / 1.5 < expected["run_folder_bytes"] < 1.5 * size


@pytest.mark.slow
def test_a_step_on_fewer_tokens_takes_fewer_operations(options: list[str]) -> None:
    words = [*options, *METHODS["so"]]
    short, long = _forecast(words), _forecast([*words, "model.max_length=32"])
    ratio = long["forward_flops_per_step"] / short["forward_flops_per_step"]
    assert 3.5 < ratio < 6  # matrices in proportion, attention by the square, the pooler not
    # Six pairs are a batch of four and one of two, so three steps are ten pairs.
    uneven = _forecast([*words, "shots=6", "schedule.max_steps=3"])
    assert uneven["training_flops"] == pytest.approx(2.5 * uneven["flops_per_step"], rel=0.01)


@pytest.mark.slow
def test_sampled_gradients_take_less_memory_than_whole_ones(options: list[str]) -> None:
    words = [*options, *METHODS["so"]]
    sampled = _forecast([*words, "optimizer.sampled_gradients=true"])
    whole = _forecast([*words, "optimizer.sampled_gradients=false"])
    assert sampled["backward_flops_per_step"] < whole["backward_flops_per_step"]
    assert sampled["forward_flops_per_step"] == whole["forward_flops_per_step"]
    assert sampled["gradients_mib"] <= whole["gradients_mib"]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("rank", [2, 4, 8, 16])
def test_lora_has_165888_parameters_a_rank_on_bert_base(rank: int) -> None:
    words = ["experiment=rte_official", "method=lora", f"adapter.rank={rank}", "device=cpu"]
    model = fake_sentence_model(settings_of(words), 2, FakeTensorMode(allow_non_fake_inputs=True))
    added = [value for name, value in model.parameters.items() if name not in model.dense]
    assert sum(value.numel() for value in added) == 165_888 * rank
    assert len(added) == 2 * 72
    vectors = [name for name in model.dense if model.parameters[name].ndim == 1]
    matrices = model.dense - {*vectors}
    assert matrices == {"bert.pooler.dense.weight", "classifier.weight"}
    # Biases of 72 matrices, 25 norms with two vectors each, pooler and classifier.
    assert len(vectors) == 72 + 50 + 2


@pytest.mark.slow
def test_the_command_needs_neither_data_nor_weights_and_shows_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("forecast", "rte", "model=bert_base", "method=so", "device=cpu", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    # 109,483,778 weights of BERT-base with two classes, in float32; its positions are a buffer.
    assert found["weights_mib"] == pytest.approx(4 * 109_483_778 / 2**20, rel=1e-3)
    assert found["trainable_parameters"] == 109_483_778
    assert found["test_images"] == 277
    shown = table(found)
    assert "277 examples" in shown
    assert "128 at most" in shown
    assert "adapter file" not in shown
    assert [*tmp_path.iterdir()] == []


def test_a_card_without_sizes_is_refused(options: list[str]) -> None:
    card = replace(load_sentence_card("rte"), sizes=None)
    with pytest.raises(InputError, match="its card has no sizes"):
        forecast_sentences(settings_of(options), card)
