"""The plan of scripts/rte_experiment.py: contenders, rates, seeds and the words of each run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Words = tuple[str, ...]

DENSITIES = (1e-3, 1e-4, 1e-5)  # those of the published table
GRID_DENSITIES, GRID_INTERVALS = (1e-2, *DENSITIES), (5, 10, 20)  # those of the released script
RANKS = (2, 4, 8, 16)
T = 5  # steps between two draws of SO's supports; the released default
# Learning rates to choose from, at seed TUNING_SEED. In a trial on training pairs, the middle one
# brought the training loss of 40 steps below 0.1, and did not diverge.
RATES = {
    "so": (2e-4, 6e-4, 2e-3),
    "lora": (2e-4, 6e-4, 2e-3),
    "adamw": (3e-5, 1e-4, 3e-4),
    "bitfit": (3e-4, 1e-3, 3e-3),
    "head": (3e-4, 1e-3, 3e-3),
}
TUNING_SEED = 0  # no seed of the tables, so that other pairs are drawn
SEEDS = (1, 2, 3, 4, 5)
GRID_SEEDS = (1, 2, 3)
# The length of the released cosine. The released code continues after it; here it is the last step.
OFFICIAL_STEPS = 10_000


@dataclass(frozen=True)
class Contender:
    """One method of a table, with its density ratio or its rank.

    Attributes:
        method: the name in conf/method.
        title: for people.
        density_ratio, T: of SO, else None.
        rank: of LoRA, else None.
    """

    method: str
    title: str
    density_ratio: float | None = None
    T: int | None = None
    rank: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the contender in a table."""
        return self.method, self.density_ratio, self.T, self.rank

    @property
    def words(self) -> Words:
        """The options that choose it."""
        words = [f"method={self.method}"]
        if self.density_ratio is not None:
            words += [f"optimizer.density_ratio={self.density_ratio:g}", f"optimizer.T={self.T}"]
        if self.rank is not None:
            words.append(f"adapter.rank={self.rank}")
        return tuple(words)


@dataclass(frozen=True)
class Work:
    """One run.

    Attributes:
        section: the folder of its runs.
        words: its options.
    """

    section: str
    words: Words


def so(density_ratio: float, interval: int = T) -> Contender:
    """Return SO at a density ratio and an interval between draws."""
    density = f"{density_ratio:.0e}".replace("e-0", "e-")
    return Contender("so", f"SO, density {density}", density_ratio, interval)


def lora(rank: int) -> Contender:
    """Return LoRA at a rank."""
    return Contender("lora", f"LoRA, rank {rank}", rank=rank)


def contenders() -> list[Contender]:
    """Return the methods of the first table."""
    return [
        *map(so, DENSITIES),
        *map(lora, RANKS),
        Contender("adamw", "AdamW (dense)"),
        Contender("bitfit", "BitFit"),
        Contender("head", "frozen encoder, trained head"),
    ]


def tuned() -> list[Contender]:
    """Return the contender of each method whose rates are tried; the others take its rate."""
    return [
        so(1e-4),
        lora(8),
        *(each for each in contenders() if each.method not in ("so", "lora")),
    ]


def rates_work(common: Words) -> list[Work]:
    """Return the runs that choose the rates: tested on training pairs that no draw uses."""
    return [
        Work(
            "rates",
            (
                *_fair(common),
                *contender.words,
                f"optimizer.lr={rate:g}",
                f"seed={TUNING_SEED}",
                "split=leftover",
            ),
        )
        for contender in tuned()
        for rate in RATES[contender.method]
    ]


def table_work(
    common: Words, rates: dict[str, float], seeds: Sequence[int], grid_seeds: Sequence[int]
) -> list[Work]:
    """Return the runs of the methods and of the grid, seed by seed.

    So an experiment that is stopped early has fewer seeds of each method, not fewer methods.
    """
    asked: list[tuple[Contender, int]] = []
    for seed in seeds:
        asked += [(contender, seed) for contender in contenders()]
        if seed == seeds[0]:
            asked += [(cell, seed) for cell in grid() if seed in grid_seeds]
    asked += [(cell, seed) for seed in grid_seeds for cell in grid()]
    return [
        Work(
            "runs",
            (
                *_fair(common),
                *contender.words,
                f"optimizer.lr={rates[contender.method]:g}",
                f"seed={seed}",
            ),
        )
        for contender, seed in dict.fromkeys(asked)
    ]


def official_work(model: Words) -> list[Work]:
    """Return one run of each published cell with T = 5, and of each rank.

    The defaults of the released scripts come first. Padding to the longest of a batch in place of
    128 tokens is exact under the mask, and takes about half the time.
    """
    first = [so(1e-4), lora(8)]
    rest = [each for each in contenders() if each.key[0] in ("so", "lora") and each not in first]
    longest = ("model.padding=longest", f"schedule.max_steps={OFFICIAL_STEPS}")
    common = ("experiment=rte_official", *model, *longest)
    return [Work("official", (*common, *contender.words)) for contender in (*first, *rest)]


def grid() -> Iterator[Contender]:
    """Yield the cells of the grid of density ratio and T."""
    for density_ratio in GRID_DENSITIES:
        for interval in GRID_INTERVALS:
            yield so(density_ratio, interval)


def _fair(common: Words) -> Words:
    return ("experiment=rte_fair", *common)
