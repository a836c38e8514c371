"""Short names of a sweep's jobs: the options in which they differ, such as kappa=5e-4 T=10."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

# Options that do not distinguish runs.
_IGNORED = frozenset({"force", "results_dir"})
# Shorter names of options, as papers write them.
_SHORT_NAMES = {"optimizer.density_ratio": "kappa", "density_ratio": "kappa"}


def options_of(overrides: Iterable[str]) -> dict[str, str]:
    """Return the options and values of a run's overrides; the last value of an option wins."""
    options: dict[str, str] = {}
    for text in overrides:
        name, equals, value = text.lstrip("+").partition("=")
        is_option = equals or name.startswith("~")  # the other words are the kind of run
        if is_option and name not in _IGNORED:
            options[name] = value
    return options


def differing(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the options that do not have one value in all jobs, in the order of the jobs."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for options in jobs:
        for name, value in options.items():
            counts[name][value] += 1
    return [name for name, values in counts.items() if max(values.values()) < len(jobs)]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return a short name of each option: its last part if no other option has the same."""
    shorter = {name: _SHORT_NAMES.get(name, name.rpartition(".")[2]) for name in names}
    counts = Counter(shorter.values())
    return {name: short if counts[short] == 1 else name for name, short in shorter.items()}


class JobNames:
    """Names the jobs of one sweep.

    Args:
        jobs: the overrides of each job.
    """

    def __init__(self, jobs: Sequence[Sequence[str]]) -> None:
        self._jobs = list(map(options_of, jobs))
        self._names = short_names(differing(self._jobs))

    def name(self, number: int, overrides: Sequence[str] = ()) -> str:
        """Return "NUMBER of COUNT" in brackets and the options that differ.

        Args:
            number: of the job, from 0.
            overrides: what to show for a job that is not in the list, because the sweeper chooses
                its jobs as it goes.
        """
        if number >= len(self._jobs):
            return " ".join([f"[{number + 1}]", *overrides])
        options = self._jobs[number]
        parts = [f"{short}={options[key]}" for key, short in self._names.items() if key in options]
        return " ".join([f"[{number + 1} of {len(self._jobs)}]", *parts])
