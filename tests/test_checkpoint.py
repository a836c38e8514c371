"""Checkpoints: damaged files, files of other runs, counted seconds, full disks."""

import math
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from so_clip import checkpoint as resume
from so_clip.checkpoint import NO_TRAINING, Checkpoint, NoCheckpoint, Stopwatch
from so_clip.errors import InputError
from so_clip.runtime.precision import Precision
from so_clip.system.paths import PACKAGE_DIR
from so_clip.train import READ_EVERY_STEPS, WATCHED_STEPS, History, Loop, train
from tests.helpers.clock import Clock
from tests.helpers.command import python
from tests.helpers.toy import CountReads, Toy, random_batches

ALWAYS = 1e-9  # seconds
STOP_LOSS = 0.3


class Part:
    """A part with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict["state"]


def _checkpoint(
    path: Path, part: Part, fingerprint: str = "run", every: float = ALWAYS
) -> Checkpoint:
    return Checkpoint(path, fingerprint, every, Stopwatch(), part=part)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint with a part whose state is a few numbers and a tensor."""
    state = {"tensor": torch.arange(1000.0), "numbers": [1, 2.5, None, True], "text": "a"}
    _checkpoint(tmp_path / "checkpoint.pt", Part(state)).after_step()
    return tmp_path / "checkpoint.pt"


def test_a_state_is_restored(path, capsys):
    part = Part(None)
    _checkpoint(path, part).restore()
    assert torch.equal(part.state.pop("tensor"), torch.arange(1000.0))
    assert part.state == {"numbers": [1, 2.5, None, True], "text": "a"}
    assert capsys.readouterr().err == ""
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def _made_by(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        kept = torch.load(path, weights_only=True)
        kept["made_by"] |= changes
        torch.save(kept, path)

    return change


def _with(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        torch.save(torch.load(path, weights_only=True) | changes, path)

    return change


HARMS = [
    _cut,
    _flip,
    _empty,
    _other,
    *(
        _made_by(code="0" * 64),
        _made_by(torch="1.0"),
        _made_by(open_clip_torch="1"),
        _made_by(peft="1"),
    ),
    *(_with(made_by="a text"), _with(states=[1, 2]), _with(states={}), _with(states={"part": 3})),
    _with(states={"stopwatch": {"seconds": math.nan}, "part": {"state": None}}),
    *(_with(states={"stopwatch": {"seconds": seconds}}) for seconds in ("x", None, -1.0, 2.0)),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_or_foreign_file_is_ignored_with_a_message(
    path, harm: Callable[[Path], None], capsys
):
    harm(path)
    part = Part("as it was")
    _checkpoint(path, part).restore()
    assert part.state == "as it was"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"so_clip: {path} is ignored: it ")
    assert line.endswith("Training starts from the beginning.")


def test_a_file_of_another_thread_count_is_ignored(path, capsys):
    """A run must not continue from such a file, or mix both states."""
    part = Part("as it was")
    Checkpoint(path, "run", ALWAYS, Stopwatch(), threads=3, part=part).restore()
    assert part.state == "as it was"
    assert "it was written with threads=None, and this run has 3" in capsys.readouterr().err


def test_a_file_of_another_run_is_ignored(path, capsys):
    part = Part("as it was")
    _checkpoint(path, part, "another run").restore()
    assert part.state == "as it was"
    assert "it belongs to another run" in capsys.readouterr().err


@pytest.mark.slow
def test_no_run_imports_the_rooms_that_leave_checkpoints_valid():
    assert all((PACKAGE_DIR / name).is_dir() for name in NO_TRAINING)
    modules = {*python("import sys, so_clip.run; print(*sys.modules)").split()}
    assert "so_clip.run" in modules
    assert not {f"so_clip.{name}" for name in NO_TRAINING} & modules


def test_reading_a_file_runs_no_code(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"made_by": {}, "states": Trap()}, tmp_path / "checkpoint.pt")
    _checkpoint(tmp_path / "checkpoint.pt", Part(None)).restore()
    assert "it cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def test_a_state_for_another_model_is_named_and_fails_one_attempt(path):
    class Other(Part):
        def load_state_dict(self, state_dict):
            torch.zeros(3).copy_(state_dict["state"]["tensor"])

    with pytest.raises(InputError, match=r"checkpoint\.pt does not fit this run .*Repeat"):
        _checkpoint(path, Other(None)).restore()
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt.unusable"]
    _checkpoint(path, Other("as it was")).restore()


def test_zero_seconds_neither_writes_nor_reads(path, tmp_path):
    never = _checkpoint(tmp_path / "none.pt", Part(1), every=0)
    never.after_step()
    never.after_training()
    assert not (tmp_path / "none.pt").exists()
    part = Part("as it was")
    _checkpoint(path, part, every=0).restore()
    assert part.state == "as it was"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(resume, "time", clock)
    return clock


def test_a_checkpoint_is_written_at_its_interval(tmp_path, clock):
    path = tmp_path / "checkpoint.pt"
    checkpoint = _checkpoint(path, Part(1), every=60)
    checkpoint.restore()
    clock.now += 59
    checkpoint.after_step()
    assert not path.exists()
    clock.now += 1
    checkpoint.after_step()
    assert path.exists()
    path.unlink()
    checkpoint.after_step()
    assert not path.exists()


def test_a_full_disk_is_reported_once_and_the_run_continues(tmp_path, capsys):
    checkpoint = _checkpoint(tmp_path / "checkpoint.pt", Part(torch.zeros(10_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writing more than this fails as it does on a full disk.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        checkpoint.after_step()
        checkpoint.after_step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "so_clip: no checkpoint is written, and the run continues without one: cannot write "
        f"{tmp_path / 'checkpoint.pt'}: File too large. Free the disk, or choose another folder "
        "with results_dir=FOLDER."
    )
    assert [*tmp_path.iterdir()] == []


def test_seconds_add_up_without_the_time_of_writing(tmp_path, clock):
    path, first = tmp_path / "checkpoint.pt", Stopwatch()

    class Slow(Part):
        def state_dict(self):
            clock.now += 30
            return {}

    checkpoint = Checkpoint(path, "run", 2.0, first, slow=Slow(None))
    clock.now += 2
    checkpoint.after_step()
    assert first.seconds == 2
    second = Stopwatch()
    clock.now += 30  # work that is repeated before training continues
    Checkpoint(path, "run", ALWAYS, second).restore()
    clock.now += 1
    assert second.seconds == 3


class Cut:
    """Batches with a place in the epoch; an interrupt comes after a number of them."""

    def __init__(self, sizes: list[int], left: int = 10**9) -> None:
        self.given, self.left = random_batches(sizes).batches, left
        self.taken, self.passed_over = 0, 0

    def epoch(self) -> Any:
        self.taken, self.passed_over = self.passed_over, 0
        for batch in self.given[self.taken :]:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.passed_over = state_dict["taken"]


def _train(
    folder: Path | None,
    left: int = 10**9,
    stop_loss: float = 0.0,
    stop_on: Literal["epoch", "batch"] = "epoch",
) -> tuple[History, Tensor, int]:
    sizes = [4, 4, 1] if stop_on == "epoch" else [4, 4]
    toy, batches = Toy(), Cut(sizes, left)
    optimizer = torch.optim.Adam(toy.parameters(), lr=0.05)
    checkpoint = NoCheckpoint()
    if folder is not None:
        weights = Module(toy)
        checkpoint = Checkpoint(
            folder / "checkpoint.pt",
            "run",
            ALWAYS,
            Stopwatch(),
            weights=weights,
            optimizer=optimizer,
            batches=batches,
        )
    watched = Watched()
    fp32 = Precision("fp32", torch.device("cpu"))
    loop = Loop(toy, batches, optimizer, fp32, watched, checkpoint=checkpoint)
    history = train(loop, max_steps=60, stop_loss=stop_loss, lr_min=1e-6, stop_on=stop_on)
    return history, toy.weight_KP.detach(), watched.times


class Module:
    """A module's state; loading changes the tensors in place."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.module.load_state_dict(state_dict)


class Watched:
    """Counts how often it is entered."""

    times = 0

    def __enter__(self) -> None:
        self.times += 1

    def __exit__(self, *error: object) -> None:
        pass


# In the middle of an epoch, at its end, and just before the end of training.
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    ("stop_loss", "cut"),
    [
        *((0.0, cut) for cut in (13, 14, 15, 16, 58, 59)),
        *((STOP_LOSS, cut) for cut in (13, 14, 15)),
    ],
)
def test_training_continues_from_the_checkpoint(tmp_path, cut, stop_loss):
    history, weight_KP, _ = _train(None, stop_loss=stop_loss)
    assert cut < history.steps
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, cut, stop_loss=stop_loss)
    resumed, resumed_KP, watched = _train(tmp_path, history.steps - cut, stop_loss=stop_loss)
    assert resumed == history
    assert torch.equal(resumed_KP, weight_KP)
    assert watched == 0


def test_an_early_stop_is_repeated_after_resuming():
    history, *_ = _train(None, stop_loss=STOP_LOSS)
    assert history.stop_reason == "stop_loss"
    assert WATCHED_STEPS + 4 < history.steps < 60
    assert history.steps % 3 == 0


@pytest.mark.parametrize("cut", [13, 14])
def test_a_stop_in_the_middle_of_an_epoch_is_repeated_after_resuming(tmp_path, cut):
    history, weight_KP, _ = _train(None, stop_loss=0.2, stop_on="batch")
    assert history.stop_reason == "stop_loss"
    assert cut < history.steps < 60
    assert history.steps % 2
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, cut, 0.2, "batch")
    resumed, resumed_KP, _ = _train(tmp_path, history.steps - cut, 0.2, "batch")
    assert resumed == history
    assert torch.equal(resumed_KP, weight_KP)
    again, again_KP, _ = _train(tmp_path, 0, 0.2, "batch")
    assert again == history
    assert torch.equal(again_KP, weight_KP)


@pytest.mark.parametrize("stop_loss", [0.0, STOP_LOSS])
def test_a_finished_training_is_not_repeated(tmp_path, stop_loss):
    done = _train(tmp_path, stop_loss=stop_loss)
    again = _train(tmp_path, 0, stop_loss=stop_loss)
    assert again[0] == done[0]
    assert torch.equal(again[1], done[1])


def test_no_checkpoint_is_written_before_the_peak_is_measured(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, WATCHED_STEPS - 1)
    assert [*tmp_path.iterdir()] == []


def test_steps_wait_for_the_device_only_when_a_checkpoint_is_written(tmp_path):
    toy, batches = Toy(), random_batches([2] * (READ_EVERY_STEPS + 10))
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "run", 3600, Stopwatch())
    optimizer = torch.optim.SGD(toy.parameters(), lr=1.0)
    fp32 = Precision("fp32", torch.device("cpu"))
    loop = Loop(toy, batches, optimizer, fp32, Watched(), checkpoint=checkpoint)
    with CountReads() as reads:
        train(loop, max_steps=60, stop_loss=0.0, lr_min=1e-6)
    assert reads == {"tolist": 2}
