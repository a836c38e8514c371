"""Equal blocks of a tower: a forecast runs four of them, and counts the others by the third.

In a run of n equal blocks, the outer ones can differ from the others, because their neighbours keep
other tensors alive. So the first two blocks, the third and the last one run. What the third does to
memory and to the count of operations is repeated n - 3 times, in the forward and in the backward
pass.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from so_clip.clip.classifier import Classifier
from so_clip.clip.towers import block_lists, has_text, text_blocks
from so_clip.forecast.flops import FlopCounter
from so_clip.optim.gradients import put_empty_gradient
from so_clip.optim.sampled_gradient import values_of
from so_clip.runtime.peak_memory import PeakMemory

_FEWEST = 5  # equal blocks; if there are fewer, all run


class _Short:
    """A list of all blocks. Iteration yields only the blocks that run."""

    kept: tuple[nn.Module, ...]  # a tuple does not register its modules again

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.kept)


def shorten(blocks: Any, kept: Sequence[nn.Module]) -> None:
    """Let a ModuleList or Sequential iterate over `kept`, a part of its modules."""
    vars(blocks)["kept"] = tuple(kept)
    kind = type(blocks)
    blocks.__class__ = type(f"Short{kind.__name__}", (_Short, kind), {})


def lengthen(blocks: Any) -> None:
    """Undo `shorten`."""
    del vars(blocks)["kept"]
    blocks.__class__ = type(blocks).__mro__[2]


class Repeats:
    """Runs four blocks of each run of equal blocks, and repeats what the third one logs.

    A period of a block goes from the end of the block before it to its own end in the forward pass,
    and from its own start to the start of the next one in the backward pass. So it includes
    the memory that is freed between two blocks.

    Args:
        peak: logs the storages; its log gets the repetitions.
        flops: counts the operations; it gets the repetitions.
    """

    def __init__(self, peak: PeakMemory, flops: FlopCounter) -> None:
        self._log, self._flops = peak.log, flops
        self._start = (0, 0)  # changes in the log and operations at the start of the open period
        self._times = 1  # how often the open period of a backward pass counts
        self._excess: Counter[int] = Counter()  # storage number -> bytes that repetitions added
        self._skipped: list[tuple[nn.Module, nn.Module]] = []  # (block, the block that is repeated)

    @contextmanager
    def in_towers(self, classifier: Classifier) -> Iterator[None]:
        """Shorten, in this context, the lists of blocks of both towers."""
        lists = _lists(classifier)
        whole = [[*blocks] for blocks in lists]
        self._end_period(1)
        for blocks in lists:
            shorten(blocks, self._kept([*blocks]))
        try:
            yield
        finally:
            for blocks in lists:
                lengthen(blocks)
            for block in chain(*whole):
                vars(block).pop("around", None)

    def complete_gradients(self, optimizer: Optimizer) -> None:
        """Give blocks that did not run the gradients of their equals, before the optimizer's step.

        Their memory is in the log already, by the repetitions. These end here.
        """
        self._end_period(self._times)
        self._log.changes += [(number, -size) for number, size in self._excess.items() if size]
        self._excess.clear()
        for block, equal in self._skipped:
            for parameter, example in zip(block.parameters(), equal.parameters(), strict=True):
                if parameter.grad is None:
                    put_empty_gradient(optimizer, parameter, example)
                    self._log.add([values_of(parameter.grad)], "gradients")

    def _kept(self, blocks: list[nn.Module]) -> list[nn.Module]:
        kept: list[Any] = []
        for _, run in groupby(blocks, key=_signature):
            equal: list[Any] = [*run]
            times = 1
            if len(equal) >= _FEWEST:
                first, second, third, *skipped, last = equal
                self._skipped += [(block, third) for block in skipped]
                times += len(skipped)
                equal = [first, second, third, last]
            for place, block in enumerate(equal):
                block.around = partial(self._around, times if place == 2 else 1)
            kept += equal
        return kept

    def _around(self, times: int, run: Callable[[], Any]) -> Any:
        output = run()
        self._end_period(times)
        first = tree_leaves(output)[0]  # blocks of Hugging Face can return tuples
        if first.requires_grad:
            first.register_hook(lambda grad: self._begin_backward(times))
        return output

    def _begin_backward(self, times: int) -> None:
        self._end_period(self._times)
        self._times = times

    def _end_period(self, times: int) -> None:
        changes, operations = self._start
        if times > 1:
            period = self._log.changes[changes:]
            self._log.changes += period * (times - 1)
            for number, change in period:
                self._excess[number] += change * (times - 1)
            self._flops.total += (self._flops.total - operations) * (times - 1)
        self._start, self._times = (len(self._log.changes), self._flops.total), 1


def _lists(classifier: Classifier) -> list[nn.Sequential | nn.ModuleList]:
    model: Any = classifier.backbone.model
    towers = [model.visual, *([text_blocks(model)] if has_text(model) else [])]
    return [blocks for tower in towers for blocks in block_lists(tower).values()]


def _signature(block: nn.Module) -> list[Any]:
    """Return all that decides a block's operations: equal blocks have equal signatures."""
    modules = [(name, type(module)) for name, module in block.named_modules()]
    tensors = [*block.named_parameters(), *block.named_buffers()]
    return [
        modules,
        [(name, x.shape, x.stride(), x.dtype, x.requires_grad) for name, x in tensors],
    ]
