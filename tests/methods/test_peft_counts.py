"""The number of parameters of peft's adapters in ViT-B/16, and their forecasts."""

import json
from pathlib import Path
from typing import Any

import pytest

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_layers import adapted_layers
from tests.helpers.command import call
from tests.helpers.peft_cases import vit_b16


def options_of(method: str, *overrides: str) -> dict[str, Any]:
    settings = from_config(compose([f"method={method}", *overrides]))
    assert settings.method.adapter is not None
    return dict(settings.method.adapter.options)


def matrices() -> list[tuple[int, int]]:
    """Outputs and inputs of SO's 96 matrices of ViT-B/16: towers 768 and 512 wide, 12 deep."""
    return [
        shape
        for width in (768, 512)
        for shape in (
            (3 * width, width),
            (width, width),
            (4 * width, width),
            (width, 4 * width),
        )
        for _ in range(12)
    ]


def lokr_count(out: int, into: int, rank: int = 8) -> int:
    # The factors that are nearest to the square roots.
    sides = {512: (16, 32), 768: (24, 32), 1536: (32, 48), 2048: (32, 64), 2304: (48, 48)}
    sides[3072] = (48, 64)
    (out_1, out_2), (into_1, into_2) = sides[out], sides[into]
    assert rank < max(out_2, into_2) / 2
    return out_1 * into_1 + rank * (out_2 + into_2)


COUNTS = {
    "lora": sum(8 * (out + into) for out, into in matrices()),
    "dora": sum(8 * (out + into) + out for out, into in matrices()),
    "vera": sum(out + 256 for out, _ in matrices()),
    # keys, values and hidden values of each block
    "ia3": sum(12 * (width + width + 4 * width) for width in (768, 512)),
    "shira": sum(8 * (out + into) for out, into in matrices()),
    "loha": sum(2 * 4 * (out + into) for out, into in matrices()),
    "lokr": sum(lokr_count(*shape) for shape in matrices()),
    # the triangle of each block of 32 inputs
    "oft": sum(into // 32 * (32 * 31 // 2) for _, into in matrices()),
    # Each of the (smaller side / 32) pairs has 32 scales, and one for each of the smaller side
    "randlora": sum(min(s) // 32 * (32 + min(s)) for s in matrices()),
    "fourierft": 96 * 1000,
    "miss": sum(8 * out for out, _ in matrices()),
    "delora": sum(8 * (out + into) + 1 for out, into in matrices()),
}


def test_the_matrices_are_sos_96() -> None:
    assert len(matrices()) == 96
    assert sum(out * into for out, into in matrices()) == 122_683_392
    assert COUNTS["lora"] == 8 * 16 * 12 * (768 + 512) == 1_966_080


@pytest.mark.parametrize(
    "method",
    [name if name == "lora" else pytest.param(name, marks=pytest.mark.slow) for name in COUNTS],
)
def test_the_number_of_parameters_of_vit_b16_follows_from_the_shapes(method: str) -> None:
    classifier = vit_b16()
    parameters = Peft(**options_of(method))(classifier)
    assert sum(value.numel() for value in parameters.values()) == COUNTS[method]
    assert len(adapted_layers(classifier)) == (72 if method == "ia3" else 96)
    named = classifier.named()
    assert {name for name, value in named.items() if value.requires_grad} == set(parameters)
    assert {value.device.type for value in parameters.values()} == {"meta"}


@pytest.mark.slow
def test_low_rank_updates_save_no_more_activations_than_dense_training() -> None:
    def activations(method: str) -> float:
        done = call("forecast", f"method={method}", "precision=fp32", "--json")
        assert done.code == 0, done.err
        return float(json.loads(done.out)["activations_mib"])

    assert activations("lora") < 1.1 * activations("adamw")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["ia3", "lokr", "randlora", "fourierft", "miss", "delora", "relora"]
)
def test_a_run_can_be_forecast(method: str) -> None:
    done = call("forecast", f"method={method}")
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "vera", "shira", "oft"])
def test_the_forecast_of_memory_equals_a_runs(method: str, tmp_path: Path) -> None:
    arguments = [f"method={method}", "schedule.max_steps=4", "evaluation.batch_size=64"]
    real = call(f"results_dir={tmp_path}", "evaluation.workers=0", "device=cpu", *arguments)
    assert real.code == 0, real.err
    (metrics,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    done = call("forecast", *arguments, "device=cpu", "--json")
    assert done.code == 0, done.err
    expected = json.loads(done.out)
    assert expected["peak_memory_mib"] == pytest.approx(metrics["peak_memory_mib"], rel=0.1)
    assert expected["weights_mib"] == pytest.approx(metrics["weights_mib"], rel=0.01)
    assert expected["trainable_parameters"] == metrics["trainable_parameters"]
