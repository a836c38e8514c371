"""Signs of life of the processes that train together, so that none waits for one that is gone.

Every process counts up a number in the store that torchrun's processes share. A process that is
stopped (SIGSTOP, a frozen machine) no longer counts, and the others end the run. A process that is
killed closes its connections, so the others' next exchange fails, and they name it. torchrun may
notice it earlier and terminate the others, so SIGTERM leads to the same search.
"""

import os
import platform
import signal
import threading
import time
from pathlib import Path
from typing import Any

from so_clip.errors import FAILED, RunFailed, Terminated, say
from so_clip.system import torchrun

# The number of signs of life in a time limit; the longest time between two of them.
_SIGNS_PER_LIMIT, _LONGEST_PAUSE_SECONDS = 6, 10.0
# How long to look for the process that ended, after an exchange has failed.
_SEARCH_SECONDS, _PAUSE_SECONDS = 1.0, 0.02
_PID, _SIGN, _END = "so_clip/pid/{}", "so_clip/sign/{}", "so_clip/end/{}"


class Peers:
    """The other processes of a run, watched by a thread.

    Args:
        store: torch's key-value store, shared by all processes.
        rank: the number of this process, from 0.
        size: the number of processes.
        limit_seconds: a process without a sign of life for this time ends the run.
    """

    def __init__(self, store: Any, rank: int, size: int, limit_seconds: float) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._limit_seconds = limit_seconds
        self._pause = min(_LONGEST_PAUSE_SECONDS, limit_seconds / _SIGNS_PER_LIMIT)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signs of life", daemon=True)
        store.set(_PID.format(rank), f"{os.getpid()} {platform.node()}")
        self._thread.start()

    def close(self, error: BaseException | None) -> None:
        """Tell the others that this process ends, and why; stop watching them."""
        self._ended.set()
        try:
            self._store.set(_END.format(self._rank), f"{error}"[:500] if error else "")
        except RuntimeError:  # the store is gone with its process
            return
        self._thread.join(self._pause)

    def loss(self) -> RunFailed | None:
        """Return a message about the process that was killed or failed; None if all are alive."""
        deadline = time.monotonic() + _SEARCH_SECONDS
        while True:
            for rank in self._others():
                reason = self._value(_END.format(rank))  # empty: interrupted, or done
                if reason:
                    return self._message(rank, f"failed ({reason})")
                if reason is None and not self._is_alive(rank):
                    return self._message(rank, "was killed")
            if time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE_SECONDS)

    @property
    def speaks(self) -> bool:
        """Whether this process prints messages: the first one that is alive."""
        return all(not self._is_alive(rank) for rank in self._others() if rank < self._rank)

    def _others(self) -> list[int]:
        return [rank for rank in range(self._size) if rank != self._rank]

    def _watch(self) -> None:
        """Give signs of life, and end this process if another one gives none."""
        signs, silent = dict[int, str | None](), dict.fromkeys(self._others(), 0)
        count = 0
        while not self._ended.wait(self._pause):
            count += 1
            try:
                self._store.set(_SIGN.format(self._rank), str(count))
                for rank in silent:
                    sign = self._value(_SIGN.format(rank))
                    has_ended = self._value(_END.format(rank)) is not None
                    silent[rank] = 0 if has_ended or sign != signs.get(rank) else silent[rank] + 1
                    signs[rank] = sign
            except RuntimeError:
                return  # without the store, the exchanges fail as well
            # Counts of pauses, not of seconds: this process may have been stopped itself.
            lost = [rank for rank, pauses in silent.items() if pauses >= _SIGNS_PER_LIMIT]
            if lost and not self._ended.is_set():
                seconds = f"{self._limit_seconds:g}"
                if min(set(range(self._size)) - {*lost}) == self._rank:
                    problem = f"gave no sign of life for {seconds} s (rank_timeout_seconds)"
                    say(str(self._message(lost[0], problem)))
                os._exit(FAILED)  # the main thread waits inside torch for the lost process

    def _value(self, key: str) -> str | None:
        """Return a value of the store without waiting for it; None if there is none."""
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _message(self, rank: int, problem: str) -> RunFailed:
        pid, _, host = (self._value(_PID.format(rank)) or "").partition(" ")
        return RunFailed(
            f"process {rank + 1} of {self._size} (rank {rank}, process id {pid} on {host}) "
            f"{problem}, and the others cannot continue without it. This command continues from "
            f"the last checkpoint:\n  {torchrun.command_line()}"
        )

    def _is_alive(self, rank: int) -> bool:
        """Return whether a process exists, as far as this machine can see."""
        pid, _, host = (self._value(_PID.format(rank)) or "").partition(" ")
        if host != platform.node() or not pid:
            return True
        try:
            os.kill(int(pid), 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return False
        except OSError:  # another user's process, or a system without /proc
            return True
        return state not in "ZX"  # it ended, but its parent has not noticed yet


def raise_termination() -> None:
    """Let SIGTERM raise Terminated, so that this process can look for a lost one before it ends."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _raise_terminated)


def restore_termination() -> None:
    """Undo `raise_termination`, unless SIGTERM is ignored by now."""
    if signal.getsignal(signal.SIGTERM) is _raise_terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise_terminated(number: int, frame: Any) -> None:
    raise Terminated


def ignore_termination() -> None:
    """Let this process name a lost one: torchrun terminates all others a moment later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
