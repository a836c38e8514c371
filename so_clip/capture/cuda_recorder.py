"""CUDA graphs of training steps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@cache
def training_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the side stream of all trainings on a device.

    There is one, because the allocator gives memory that was freed on a stream to no other stream.
    """
    return torch.cuda.Stream(device)


class CudaRecorder:
    """Captures functions as CUDA graphs that share one memory pool.

    All training steps, eager ones too, run on one side stream: autograd accumulates a parameter's
    gradients on the stream of its first use, and a capture may not wait for another stream. An
    evaluation between two steps runs on it too.

    Graphs may share the pool because no tensor in it is read after the replay that wrote it.

    Args:
        device: a CUDA device.
        generators: explicit CUDA generators that a step draws from. The default one is known.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self._device = device
        self._generators = [*generators]
        self._stream = training_stream(device)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool: Any = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the side stream in place of the current one inside the context."""
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        torch.cuda.empty_cache()  # one stream cannot use what the allocator keeps for another
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)
            torch.cuda.empty_cache()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the operations of a function; nothing is computed.

        Returns:
            The replay: computes the operations again, at the same addresses.

        Raises:
            RuntimeError: an operation cannot be captured. Random states are as before.
        """
        states = self._random_states()
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # Threads that decode images may use CUDA meanwhile, so only this thread is watched.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
        except RuntimeError:
            self._restore(states)
            raise
        self._graphs.append(graph)
        return graph.replay

    def release(self) -> None:
        """Free all graphs and their memory."""
        if not self._graphs:
            return
        self._stream.synchronize()
        for graph in self._graphs:
            graph.reset()
        self._graphs, self._pool = [], None
        torch.cuda.empty_cache()

    def _random_states(self) -> list[tuple[torch.Generator, torch.Tensor]]:
        with torch.cuda.device(self._device):
            default = torch.cuda.default_generators[torch.cuda.current_device()]
        return [(generator, generator.get_state()) for generator in (default, *self._generators)]

    def _restore(self, states: list[tuple[torch.Generator, torch.Tensor]]) -> None:
        """Give the generators new states: after a failed capture torch refuses to use the old."""
        for generator, state in states:
            fresh = torch.Generator(generator.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
