"""A clock that tests set, so that no test waits or depends on the machine."""


class Clock:
    """Replaces the module `time`; `now` is in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic
