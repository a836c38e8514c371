"""Signals in a sweep: the first one, the second one, and an ignored one."""

import signal
import subprocess
import sys

import pytest

from so_clip.errors import Terminated
from so_clip.sweep.interrupts import Interrupts
from tests.helpers.command import environment

# Stands for a sweep that takes long to end.
SLOW_SWEEP = """
import time
from so_clip.sweep.interrupts import Interrupts

Interrupts().watch()
try:
    print("running", flush=True)
    time.sleep(600)
except KeyboardInterrupt as error:
    print(type(error).__name__, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("first", "raised", "second"),
    [
        (signal.SIGINT, b"KeyboardInterrupt\n", signal.SIGTERM),
        (signal.SIGTERM, b"Terminated\n", signal.SIGINT),
    ],
)
def test_the_first_signal_raises_and_the_second_kills(first, raised, second):
    command = [sys.executable, "-c", SLOW_SWEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        process.send_signal(first)
        assert process.stdout.readline() == raised
        process.send_signal(second)
        assert process.wait(60) == -second


def test_the_handlers_from_before_are_set_again():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupts = Interrupts()
    interrupts.watch()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    interrupts.unwatch()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts = Interrupts()
        interrupts.watch()
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        interrupts.unwatch()
    finally:
        signal.signal(signal.SIGINT, before)
