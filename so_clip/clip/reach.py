"""The parameters of a model that its embeddings depend on."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from so_clip.clip.towers import has_text, image_sides


def reached(model: Any) -> frozenset[str]:
    """Return the names of the parameters that the embedding of an image or a text depends on.

    One image is encoded, and one text if there is a text tower, and their graph is followed back to
    its leaves. CoCa's caption decoder, the pooling layers that a text tower does not use, and the
    scale of the logits are not reached.

    Args:
        model: an open_clip model in evaluation mode, real or fake; it does not change.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    first = next(iter(leaves.values()))
    with first.fake_mode if isinstance(first, FakeTensor) else nullcontext(), torch.enable_grad():
        image_BCHW = torch.zeros(1, 3, *image_sides(model), dtype=first.dtype, device=first.device)
        outputs = [_call(model, leaves, "encode_image", image_BCHW)]
        if has_text(model):
            # Encoders of Hugging Face take a short text; some state a length that they refuse.
            length = 4 if hasattr(getattr(model, "text", None), "config") else model.context_length
            tokens_KL = torch.zeros(1, length, dtype=torch.long, device=first.device)
            outputs.append(_call(model, leaves, "encode_text", tokens_KL))
    found = leaves_of(outputs)
    return frozenset(name for name, value in leaves.items() if id(value) in found)


class _Method(nn.Module):
    """A method of a model as a module's forward, for torch.func.functional_call."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, inputs: Tensor) -> Any:
        return getattr(self.model, self.method)(inputs)


def _call(model: nn.Module, tensors: dict[str, Tensor], method: str, inputs: Tensor) -> Tensor:
    named = {f"model.{name}": value for name, value in tensors.items()}
    output: Tensor = functional_call(_Method(model, method), named, (inputs,))
    return output


def leaves_of(outputs: Iterable[Tensor]) -> set[int]:
    """Return the ids of the leaf tensors in the graphs of some outputs."""
    found, seen = set[int](), set[Any]()
    waiting: list[Any] = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.add(id(node.variable))
    return found
