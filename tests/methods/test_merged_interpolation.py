"""WiSE-FT of peft's adapters: merged weights between zero-shot and adapted weights."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.adalora import AdaLoRA
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_kinds import KINDS
from so_clip.methods.peft_layers import adapted_layers
from so_clip.methods.relora import ReLoRA
from tests.helpers.command import call
from tests.helpers.peft_cases import OPTIONS, build
from tests.helpers.small_models import small_backbone
from tests.helpers.structured_cases import CASES, ROLES, Formula, adapted, parts, tolerance
from tests.helpers.tiny_classifiers import IMAGES_BCHW, PROMPTS, SCALE, Given, classifier
from tests.oracles.peft_oracle import MATRICES, merged

GIVEN = Given([0, 1, 2])


def move(parameters: dict[str, nn.Parameter]) -> None:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in parameters.values():
            value.data = value.double()
            value += 0.1 * torch.randn(value.shape, generator=draw, dtype=value.dtype)


def logits_of(made: Classifier) -> Tensor:
    made.forget_classes()
    with torch.no_grad():
        return made(IMAGES_BCHW)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("split_qkv", [False, True])
@pytest.mark.parametrize("kind", MATRICES)
def test_final_weights_are_the_weighted_mean(kind: str, split_qkv: bool) -> None:
    made, own = classifier(), small_backbone().to(torch.float64)
    own.logit_scale = SCALE
    options, scale = OPTIONS[kind]
    adapter = build(kind, split_qkv=split_qkv, interpolation=0.3, **options)
    move(adapter(made))
    before = copy.deepcopy(own.model.state_dict())
    inside = merged(own.model, made.backbone.model, MATRICES[kind], scale).state_dict()
    expected = {
        name: 0.7 * value + 0.3 * inside[name] if value.is_floating_point() else value
        for name, value in before.items()
    }
    base = {name: id(p) for name, p in made.named().items() if not p.requires_grad}
    adapter.start(made, GIVEN)
    adapter.finish(made)
    assert base == {name: id(p) for name, p in made.named().items() if not p.requires_grad}
    found = made.backbone.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-8)
    own.model.load_state_dict(expected)
    plain = Classifier(own, own.tokenize(list(PROMPTS)))
    # Embeddings are rounded to float32 on their way into logits.
    torch.testing.assert_close(logits_of(made), logits_of(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "options", "formula"), CASES.values(), ids=CASES)
def test_structured_updates_end_as_the_weighted_mean(
    kind: str, options: dict[str, Any], formula: Formula
) -> None:
    made, adapter = adapted(kind, {**options, "interpolation": 0.3})
    layers = adapted_layers(made)[::3]
    with torch.no_grad():
        expected = [
            0.7 * layer.base_layer.weight + 0.3 * formula(layer.base_layer.weight, parts(layer))
            for layer in layers
        ]
    biases = [layer.base_layer.bias.clone() for layer in layers]
    adapter.finish(made)
    for layer, weight_OI, bias_O in zip(layers, expected, biases, strict=True):
        torch.testing.assert_close(layer.base_layer.weight.data, weight_OI, **tolerance(kind))
        x_BI = torch.eye(layer.in_features, dtype=torch.float64)
        found_BO = layer(x_BI).detach()
        torch.testing.assert_close(found_BO, F.linear(x_BI, weight_OI, bias_O), **tolerance(kind))


def test_shiras_entries_are_interpolated() -> None:
    made, adapter = classifier(), Peft("shira", ROLES, rank=2, interpolation=0.25)
    move(adapter(made))
    layer = adapted_layers(made)[0]
    expected_OI = layer.base_layer.weight.clone()
    entries = layer.shira_indices["default"].T
    for (row, column), value in zip(entries, layer.shira_weight["default"], strict=True):
        expected_OI[row, column] += 0.25 * value
    adapter.finish(made)
    torch.testing.assert_close(layer.base_layer.weight.data, expected_OI.detach())


def test_all_updates_of_relora_are_interpolated() -> None:
    made = classifier()
    adapter = ReLoRA(ROLES, rank=3, alpha=6, every=4, restart_warmup=0, interpolation=0.4)
    parameters = adapter(made)
    layers = adapted_layers(made)
    expected = [layer.base_layer.weight.clone() for layer in layers]
    adapter.start(made, GIVEN)
    for step in (4, 8, 9):
        move(parameters)
        for weight_OI, layer in zip(expected, layers, strict=True):
            up_OR, down_RI = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            weight_OI += 0.4 * (6 / 3) * (up_OR @ down_RI).detach()
        adapter.after_step(made, step)
    adapter.finish(made)
    for weight_OI, layer in zip(expected, layers, strict=True):
        torch.testing.assert_close(layer.base_layer.weight.data, weight_OI, rtol=0, atol=1e-6)
        assert "before" not in vars(layer)


def every_kind() -> dict[str, Peft]:
    options = {name: chosen for name, (chosen, _) in OPTIONS.items()}
    options |= {"fourierft": {"frequencies": 40}, "oft": {"block_size": 8}}
    made = {kind: build(kind, **options.get(kind, {"rank": 2})) for kind in KINDS}
    return made | {"relora": ReLoRA(ROLES, rank=2)}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", every_kind())
def test_the_interpolated_model_can_be_saved_and_loaded(kind: str) -> None:
    def opened(interpolation: float = 0.5) -> tuple[Classifier, Peft, dict[str, nn.Parameter]]:
        made, adapter = classifier(), every_kind()[kind]
        adapter.interpolation = interpolation
        parameters = adapter(made)
        for value in parameters.values():
            value.data = value.double()
        return made, adapter, parameters

    made, adapter, parameters = opened()
    adapter.start(made, GIVEN)
    zero_shot = logits_of(made)
    move(parameters)
    whole = logits_of(made)
    adapter.finish(made)
    assert (logits_of(made) - whole).abs().max() > 1e-3
    assert (logits_of(made) - zero_shot).abs().max() > 1e-3
    again, its_adapter, _ = opened()
    again.load_state_dict(made.state_dict())
    its_adapter.resume(again)
    assert torch.equal(logits_of(again), logits_of(made))
    back, adapter, parameters = opened(0)
    adapter.start(back, GIVEN)
    move(parameters)
    adapter.finish(back)
    torch.testing.assert_close(logits_of(back), zero_shot, rtol=0, atol=1e-6)
    kept, adapter, parameters = opened(1)
    base = {name: p.clone() for name, p in kept.named().items() if not p.requires_grad}
    move(parameters)
    adapter.finish(kept)
    assert torch.equal(logits_of(kept), whole)
    assert all(torch.equal(kept.named()[name], value) for name, value in base.items())


@pytest.mark.parametrize("value", [-0.1, 1.5, "x", True, float("nan")])
def test_a_value_outside_0_to_1_is_an_error(value: Any) -> None:
    for make in (
        lambda: Peft("lora", ROLES, interpolation=value),
        lambda: AdaLoRA(ROLES, 9, interpolation=value),
        lambda: ReLoRA(ROLES, interpolation=value),
    ):
        with pytest.raises(InputError, match=f"adapter.interpolation={value}: must"):
            make()


@pytest.mark.slow
def test_the_default_of_all_peft_methods_is_1() -> None:
    for method in (*KINDS, "relora"):
        adapter = from_config(compose([f"method={method}"])).method.adapter
        assert adapter is not None
        assert adapter.options["interpolation"] == 1


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", ["coop", "cocoop", "taskres", "clap", "tip_adapter_f"])
def test_prompts_and_heads_have_no_interpolation(method: str) -> None:
    done = call(f"method={method}", "adapter.interpolation=0.5")
    assert done.code == 2
    assert "adapter.interpolation" in done.err


@pytest.mark.slow
def test_runs_with_three_shares_end_at_different_accuracies(tmp_path: Path) -> None:
    def metrics(share: float) -> dict[str, Any]:
        folder = tmp_path / str(share)
        arguments = ["method=lora", f"adapter.interpolation={share}", "optimizer.lr=1e-2"]
        arguments += ["shots=1", "schedule.max_steps=3", "evaluation.workers=0"]
        done = call(*arguments, f"results_dir={folder}")
        assert done.code == 0, done.err
        (file,) = folder.glob("*/metrics.json")
        return json.loads(file.read_text())

    none, half, whole = map(metrics, (0, 0.5, 1))
    assert none["accuracy_percent"] == none["zero_shot_accuracy_percent"]
    assert len({run["accuracy_percent"] for run in (none, half, whole)}) == 3
