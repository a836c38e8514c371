"""What other pages than the benchmarks say with a unit, from tables, cards and the code."""

from collections.abc import Callable

import yaml

from so_clip.adapters.of_run import AUTO_MIB
from so_clip.config.settings import declared_options
from so_clip.data.cache.decode_cache import RESERVE_BYTES
from so_clip.data.image_memory import MOST_MIB
from so_clip.results.logits_file import AUTO_BYTES, MAX_BYTES
from tests.helpers.benchmark_claims import SO_MODES, by_contender
from tests.helpers.command import ROOT

MIB, GIB = 2**20, 2**30


def memory() -> list[str]:
    steps = by_contender("engine_steps_cpu", "step_seconds")
    slower = [steps[SO_MODES["small"]] / steps[SO_MODES[mode]] for mode in ("fast", "balanced")]
    least, most = min(map(min, slower)), max(map(max, slower))
    return [f"On a CPU, `small` takes {least:.1f} to {most:.1f} times as long as the other two"]


def so() -> list[str]:
    state = by_contender("engine_cost_cpu", "optimizer_state_mib").drop_duplicates()
    sparse, dense = state["engine_balanced"].item(), state["adamw"].item()
    return [f"this is {sparse:.1f} MiB and {dense:.0f} MiB for the encoders of ViT-B/16"]


def python() -> list[str]:
    steps = by_contender("engine_steps_cpu", "step_seconds")
    assert declared_options()["memory"].default == "balanced"
    return [f"[{steps['engine_balanced']['eurosat']:.1f} s](../benchmarks/engine_cpu.md)"]


def photos() -> list[str]:
    steps = by_contender("engine_steps_cpu", "step_seconds").loc["eurosat"]
    fast, balanced = steps["engine_fast"], steps["engine_balanced"]
    return [f"takes [{fast:.1f} to {balanced:.1f} seconds](../benchmarks/engine_cpu.md)"]


def image_cache() -> list[str]:
    default = declared_options()["evaluation.decode_cache_gib"].default
    needed = _tests("imagenet") * 224 * 224 * 3 / GIB
    return [
        f"The default is {default} GiB; ImageNet's {_tests('imagenet'):,} test images need "
        f"{needed:.0f}.",
        f"({RESERVE_BYTES / GIB:g} GiB always stays free)",
    ]


def own_images() -> list[str]:
    return [f"training images of more than {MOST_MIB / 1024:g} GiB"]


def rescore() -> list[str]:
    size = 2 * 397 * _tests("sun397") / MIB
    return [
        f"if the file has at most {AUTO_BYTES / MIB:g} MiB",
        f"both models, up to {MAX_BYTES / GIB:g} GiB",
        f"{_tests('sun397'):,} test images (SUN397), one model takes {size:.0f} MiB",
    ]


def saved_adapters() -> list[str]:
    return [f"written if it takes at most {AUTO_MIB} MiB"]


def _tests(dataset: str) -> int:
    """Return how many test images a dataset has."""
    card = yaml.safe_load((ROOT / "datasets" / f"{dataset}.yaml").read_text(encoding="utf-8"))
    return int(card["sizes"]["test"])


CLAIMS: dict[str, Callable[[], list[str]]] = {
    "concepts/memory": memory,
    "concepts/so": so,
    "how_to/image_cache": image_cache,
    "how_to/own_images": own_images,
    "how_to/rescore": rescore,
    "how_to/saved_adapters": saved_adapters,
    "start/photos": photos,
    "start/python": python,
}
