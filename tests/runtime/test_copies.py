"""The order of copies, of work and of waiting, recorded by a stand-in for torch.cuda."""

from contextlib import contextmanager
from itertools import count

import pytest
import torch

from so_clip.runtime.copies import ON_DEVICE, _by_streams, moved_ahead

CPU = torch.device("cpu")


class Recorder:
    """Has the functions of torch.cuda that copies use, and logs their calls in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.stream_now, self.numbers = "work", count()
        recorder = self

        class Event:
            def __init__(self) -> None:
                self.name = str(next(recorder.numbers))

            def record(self, stream: str) -> None:
                recorder.log.append(("record", self.name, stream))

            def wait(self, stream: str) -> None:
                recorder.log.append(("wait", self.name, stream))

            def synchronize(self) -> None:
                recorder.log.append(("synchronize", self.name))

        self.Event = Event

    def Stream(self, device: torch.device) -> str:
        return "copies"

    def current_stream(self, device: torch.device) -> str:
        return self.stream_now

    @contextmanager
    def stream(self, stream: str):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before


def _batches(number: int, recorder: Recorder | None = None):
    for index in range(number):
        if recorder is not None:
            recorder.log.append(("decoded", str(index)))
        yield torch.full((2, 3), index)


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_batches_come_whole_and_in_order(number):
    for moved in (
        moved_ahead(_batches(number), CPU),
        _by_streams(_batches(number), CPU, Recorder()),
    ):
        assert [batch.unique().tolist() for batch in moved] == [[index] for index in range(number)]


def test_work_on_a_batch_waits_for_its_copy_and_follows_the_next_copy():
    recorder = Recorder()
    for index, _ in enumerate(_by_streams(_batches(6, recorder), CPU, recorder)):
        recorder.log.append(("work", str(index)))
    log = recorder.log
    copied = [entry[1] for entry in log if entry[0] == "record" and entry[2] == "copies"]
    used = [entry[1] for entry in log if entry[0] == "record" and entry[2] == "work"]
    assert (len(copied), len(used)) == (6, 5)
    for index in range(6):
        assert log[log.index(("work", str(index))) - 1] == ("wait", copied[index], "work")
    for index in range(5):
        assert log[log.index(("work", str(index))) + 1] == ("record", used[index], "work")
        following = log.index(("record", copied[index + 1], "copies"))
        assert following < log.index(("work", str(index)))
    # Batch n is copied after the work on batch n - 3 is done.
    for index in range(ON_DEVICE, 6):
        start = log.index(("synchronize", used[index - ON_DEVICE]))
        assert log.index(("decoded", str(index))) < start
        assert start < log.index(("record", copied[index], "copies"))
    assert sum(entry[0] == "synchronize" for entry in log) == 6 - ON_DEVICE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_slow_gpu_gets_every_batch_whole():
    pinned = (torch.full((64, 3, 224, 224), number).pin_memory() for number in range(12))
    found = []
    for moved in moved_ahead(pinned, torch.device("cuda")):
        torch.cuda._sleep(5_000_000)
        found.append(torch.stack([moved.min(), moved.max()]))
    assert torch.stack(found).tolist() == [[number, number] for number in range(12)]
