"""Predictions of a sentence classifier on test examples.

Tensor names end in their shape: N examples, B examples of a batch, L tokens, K classes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from so_clip.data.sentence_batches import TokenRow, test_batches
from so_clip.evaluate.evaluator import Predictions
from so_clip.runtime.precision import Precision


def _no_tick() -> None:
    """Do nothing."""


@dataclass(eq=False)
class SentenceEvaluator:
    """Classifies test examples, in batches of similar length.

    Args:
        classifier: tokens_B3L -> logits_BK, on `device`.
        rows: token ids and token types of each example.
        labels: one label per example.
        batch_size: examples per batch.
        pad_id: the id of padding.
        length: of all batches, in tokens; None: the longest example of each batch.
        device: of the classifier.
        precision: of the encoder; logits are float32.

    Attributes:
        seconds: spent on evaluation so far.
        tick: called after each batch. A caller may set it; it must not wait for a device.
    """

    classifier: nn.Module
    rows: Sequence[TokenRow]
    labels: Sequence[int]
    batch_size: int
    pad_id: int
    length: int | None
    device: torch.device
    precision: Precision
    seconds: float = field(default=0.0, init=False)
    tick: Callable[[], None] = _no_tick

    def adapted(self) -> Predictions:
        """Classify all examples with the current model; predictions are in the file's order."""
        started = time.perf_counter()
        with self._without_dropout():
            probability_NK = self._probabilities()
        confidence_N, predicted_N = probability_NK.max(dim=1)
        self.seconds += time.perf_counter() - started
        return Predictions(torch.as_tensor(self.labels), predicted_N, confidence_N)

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Put the classifier in evaluation mode inside the context."""
        was_training = self.classifier.training
        self.classifier.eval()
        try:
            yield
        finally:
            self.classifier.train(was_training)

    def _batches(self) -> Iterator[tuple[list[int], Tensor]]:
        return test_batches(self.rows, self.batch_size, self.pad_id, self.length)

    @torch.inference_mode()
    def _probabilities(self) -> Tensor:
        """Return probability_NK, on the CPU."""
        order: list[int] = []
        parts = []
        with tqdm(total=len(self.rows), desc="test", unit="example", disable=None) as progress:
            for index_B, tokens_B3L in self._batches():
                with self.precision.autocast():
                    logits_BK = self.classifier(tokens_B3L.to(self.device))
                parts.append(logits_BK.float().softmax(dim=1))
                order += index_B
                progress.update(len(index_B))
                self.tick()
        sorted_NK = torch.cat(parts).cpu()
        probability_NK = torch.empty_like(sorted_NK)
        probability_NK[torch.tensor(order)] = sorted_NK
        return probability_NK
