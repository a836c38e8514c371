"""ReLoRA: a merge keeps the logits, restarts the factors and scales the steps after it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.peft_layers import adapted_layers
from so_clip.methods.relora import ReLoRA
from tests.helpers.command import call
from tests.helpers.peft_cases import IMAGES_BCHW, ROLES, loss_of, moved, small, vit_b16


def test_vit_b16_gets_as_many_parameters_as_lora() -> None:
    settings = from_config(compose(["method=relora"]))
    assert settings.method.adapter is not None
    options = dict(settings.method.adapter.options)
    parameters = ReLoRA(**options)(vit_b16())
    assert sum(value.numel() for value in parameters.values()) == 8 * 16 * 12 * (768 + 512)


def test_a_restart_moves_the_update_into_the_weights() -> None:
    classifier = small()
    adapter = ReLoRA(ROLES, rank=3, alpha=6, every=4, restart_warmup=0)
    factors = moved(adapter(classifier))
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    with torch.no_grad():
        logits_BK = classifier(IMAGES_BCHW)
    for step in (1, 2, 3):
        assert not [*adapter.after_step(classifier, step)]
    after = classifier.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    begun = [*adapter.after_step(classifier, 4)]
    assert {id(value) for value in begun} == {id(value) for value in factors.values()}
    prefix = "backbone.model."
    for name, value in factors.items():
        if "lora_B" in name:
            assert not value.any()
            layer, _, _ = name.partition(".lora_B")
            own = f"{prefix}{layer}.weight".replace("in_proj.weight", "in_proj_weight")
            down_RI = before[f"{prefix}{name}".replace("lora_B", "lora_A")].double()
            update_OI = before[f"{prefix}{name}"].double() @ down_RI * 6 / 3
            expected = before[own].double() + update_OI
            torch.testing.assert_close(
                classifier.state_dict()[own].double(), expected, rtol=0, atol=1e-6
            )
        else:
            bound = value.shape[1] ** -0.5
            assert value.any()
            assert value.abs().max() <= bound
            assert not torch.equal(value, before[f"{prefix}{name}"])
    classifier.forget_classes()
    with torch.no_grad():
        torch.testing.assert_close(classifier(IMAGES_BCHW), logits_BK, rtol=0, atol=1e-3)


def test_restarts_draw_different_values_that_depend_on_the_seed() -> None:
    def drawn(seed: int) -> list[Tensor]:
        adapter, classifier = ReLoRA(ROLES, seed=seed, every=5, restart_warmup=0), small()
        adapter(classifier)
        values = []
        for step in (5, 10):
            adapter.after_step(classifier, step)
            values.append(adapted_layers(classifier)[0].lora_A["default"].weight.clone())
        return values

    before = torch.random.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, first, drawn(0)))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], drawn(1)[0])


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_scaled_steps_equal_steps_at_a_lower_lr(make: Any) -> None:
    def factors(warm: bool) -> list[Tensor]:
        """Train over two restarts; the adapter or the learning rate scales the steps."""
        adapter = ReLoRA(ROLES, rank=2, every=5, restart_warmup=4 if warm else 0)
        classifier = small()
        parameters = [*adapter(classifier).values()]
        optimizer = make(parameters, lr=1e-2, weight_decay=0.1)
        for step in range(1, 14):
            since = (step - 1) % 5 + 1
            optimizer.param_groups[0]["lr"] = 1e-2
            if not warm and step > 5:
                optimizer.param_groups[0]["lr"] *= min(1, since / 4)
            loss_of(classifier).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for parameter in adapter.after_step(classifier, step):
                optimizer.state.pop(parameter, None)
        assert not any("before" in vars(parameter) for parameter in parameters) or step % 5 < 3
        return parameters

    for found, expected in zip(factors(True), factors(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "adapter.every=0: must be 1 or more"),
        ({"every": 5, "restart_warmup": 5}, "adapter.restart_warmup=5: must be 4 or less"),
        ({"restart_warmup": -1}, "adapter.restart_warmup=-1: must be 0 or more"),
        ({"rank": 0}, "adapter.rank=0: must be 1 or more"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ReLoRA(ROLES, **options)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_run_of_the_command_line(tmp_path: Path) -> None:
    arguments = ["method=relora", "adapter.every=2", "adapter.restart_warmup=1", "shots=1"]
    done = call(
        *arguments, "schedule.max_steps=5", "evaluation.workers=0", f"results_dir={tmp_path}"
    )
    assert done.code == 0, done.err
