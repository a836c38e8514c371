"""Every Python example of the pages on SO in other trainers trains as the page shows it.

With and without `sampled_gradients` the losses agree up to the rounding of float32.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from scripts.docs_site.blocks import python_under
from so_clip import SO, sampled_gradients
from so_clip.optim.arena import Arena
from so_clip.optim.sampled import SampledConv2d, SampledLinear
from tests.helpers.command import ROOT
from tests.helpers.other_trainers import (
    assert_falling,
    assert_small_support,
    color_images,
    in_batches,
    lightning_task,
    lightning_trainer,
    losses_of,
    network,
    sentences,
    small_bert,
    small_resnet,
    trainer_arguments,
    transformers_trainer,
    vectors,
)

PAGE = ROOT / "docs" / "how_to" / "so_any_model.md"
TRAINERS = PAGE.with_name("so_trainers.md")
OPTIMIZER = python_under(PAGE, "## Replace the optimizer")
SAMPLING = python_under(PAGE, "## Compute only the gradients that a step reads")


class Scope(dict[str, Any]):
    """The names that an example finds; `losses` holds each loss of its `loss_fn`."""

    def __init__(self, **names: Any) -> None:
        self.losses: list[float] = []
        super().__init__(SO=SO, sampled_gradients=sampled_gradients, loss_fn=self._loss, **names)

    def _loss(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(logits_BK, labels_B)
        self.losses.append(loss.item())
        return loss


class Trained(NamedTuple):
    model: nn.Module
    optimizer: SO
    losses: list[float]


def check(model: Callable[[], nn.Module], train: Callable[[nn.Module, bool], Trained]) -> None:
    """Train without and with sampling, and compare; `train` gets the model and which it is."""
    dense, sampled = (train(model(), sampling) for sampling in (False, True))
    assert not sampled_layers(dense.model)
    assert sampled_layers(sampled.model)
    assert sampled.losses == pytest.approx(dense.losses, rel=1e-4)
    for trained in (dense, sampled):
        assert_falling(trained.losses)
        old = dict(model().named_parameters())
        names = {weight: name for name, weight in trained.model.named_parameters()}
        groups = trained.optimizer.param_groups
        before = [old[names[weight]] for group in groups for weight in group["params"]]
        assert_small_support(before, trained.optimizer, len(trained.losses))


def sampled_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if type(layer) in (SampledLinear, SampledConv2d)]


def code_under(heading: str, sampling: bool) -> str:
    """Return an example; without sampling, a call of sampled_gradients becomes `0`."""
    code = python_under(PAGE, heading) or python_under(TRAINERS, heading)
    calls = [f"sampled_gradients({model}, optimizer)" for model in ("model", "self")]
    assert any(call in code for call in calls)
    for call in calls:
        code = code if sampling else code.replace(call, "0")
    return code


def the_loop() -> str:
    """Return the training loop of the first example."""
    return re.search(r"(?ms)^for images, labels in batches:\n(    .*?\n)+", OPTIMIZER)[0]


def test_the_first_examples_train_a_module() -> None:
    model = network()
    scope = Scope(model=model, batches=in_batches(vectors(), size=64, epochs=10))
    exec(OPTIMIZER + SAMPLING, scope)
    assert sampled_layers(model)
    exec(the_loop(), scope)
    assert len(scope.losses) == 20
    assert all(new < old for old, new in pairwise(scope.losses))
    assert_small_support([*network().parameters()], scope["optimizer"], 20)


def test_the_example_of_torchvision() -> None:
    def train(model: nn.Module, sampling: bool) -> Trained:
        scope = Scope(model=model, batches=in_batches(color_images(), size=12, epochs=8))
        exec(code_under("## Train vectors and a new head densely", sampling), scope)
        exec(the_loop(), scope)
        return Trained(model, scope["optimizer"], scope.losses)

    check(small_resnet, train)


def test_the_example_of_one_buffer() -> None:
    def train(model: nn.Module, sampling: bool) -> Trained:
        batches = in_batches(vectors(), size=64, epochs=10)
        scope = Scope(model=model, batches=batches)
        exec(code_under("## Put the weights into one buffer", sampling), scope)
        exec(the_loop(), scope)
        assert Arena.of(next(model.parameters())) is not None
        return Trained(model, scope["optimizer"], scope.losses)

    check(network, train)


@pytest.mark.slow
def test_the_example_of_transformers(tmp_path: Path) -> None:
    def train(model: nn.Module, sampling: bool) -> Trained:
        arguments = trainer_arguments(tmp_path)
        scope = Scope(model=model, arguments=arguments, dataset=sentences())
        scope["Trainer"] = transformers_trainer()
        exec(code_under("## Transformers", sampling), scope)
        return Trained(model, scope["optimizer"], losses_of(scope["trainer"]))

    check(small_bert, train)


@pytest.mark.slow
def test_the_example_of_accelerate() -> None:
    from accelerate import Accelerator

    def train(model: nn.Module, sampling: bool) -> Trained:
        batches = in_batches(vectors(), epochs=3)
        scope = Scope(model=model, batches=batches, accelerator=Accelerator(cpu=True))
        exec(code_under("## Accelerate", sampling), scope)
        return Trained(scope["model"], scope["optimizer"].optimizer, scope.losses)

    check(network, train)


@pytest.mark.slow
def test_the_example_of_lightning(tmp_path: Path) -> None:
    def train(model: nn.Module, sampling: bool) -> Trained:
        task = lightning_task(model)
        trainer = lightning_trainer(tmp_path)
        batches = torch.utils.data.DataLoader(list(zip(*vectors(), strict=True)), batch_size=8)
        exec(
            code_under("## Lightning", sampling),
            Scope(Task=task, trainer=trainer, batches=batches),
        )
        return Trained(model, trainer.optimizers[0], trainer.lightning_module.losses)

    check(network, train)
