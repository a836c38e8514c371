"""Signals in a sweep: what the first one does, the second, and one that is ignored."""

import signal
import subprocess
import sys

import pytest

from so_clip.errors import Terminated
from so_clip.sweep import interrupts
from tests.helpers.command import environment

# Stands for a sweep that takes its time to end.
SLOW = """
import time
from so_clip.sweep import interrupts

interrupts.watch()
try:
    print("at work", flush=True)
    time.sleep(600)
except KeyboardInterrupt as error:
    print(type(error).__name__, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("first", "raised"),
    [(signal.SIGINT, b"KeyboardInterrupt\n"), (signal.SIGTERM, b"Terminated\n")],
)
def test_the_first_raises_and_the_second_ends_at_once(first, raised, second):
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        process.send_signal(first)
        assert process.stdout.readline() == raised
        process.send_signal(second)
        assert process.wait(60) == -second


def test_all_is_put_back_as_it_was():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    interrupts.watch()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    interrupts.unwatch()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.watch()
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        interrupts.unwatch()
    finally:
        signal.signal(signal.SIGINT, before)
