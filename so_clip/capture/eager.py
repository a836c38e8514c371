"""Reasons for which training steps are not captured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Eager:
    """A reason for eager steps, in words.

    Attributes:
        reason: a part of a sentence.
        way_out: a sentence without its full stop, for a user who demands a graph.
    """

    reason: str
    way_out: str

    @property
    def outcome(self) -> str:
        """How steps are taken, for metrics.json."""
        return f"eager: {self.reason}"

    def refusal(self) -> str:
        """Return the error of graph=true."""
        return f"graph=true: {self.reason}. {self.way_out}, or leave graph out."
