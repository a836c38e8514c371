"""Plans of the benchmark: full, on a GPU, and quick."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scripts.bench.contenders import (
    ADAMW,
    BALANCED,
    CONTENDERS,
    ENGINE,
    LORA,
    LORA_BALANCED,
    LORA_SMALL,
    REFERENCE,
    SMALL,
    Contender,
)
from so_clip.data.cards.card import card_names, load_card

SHAPED_LIKE = ("eurosat", "dtd", "sun397", "imagenet")


@dataclass(frozen=True)
class Plan:
    """Sizes of a benchmark.

    Args:
        architecture: for step times, costs and optimizers.
        small_architecture: for scaling and the memory check, which take many steps.
        step_batch, cost_batch: images in timed and in counted steps.
        precision: of timed steps, fp32 | bf16.
        step_datasets: datasets of timed steps.
        flop_datasets: datasets of steps whose FLOPs are counted.
        memory_datasets: those of them whose memory is counted too.
        rounds, scaling_rounds: timed steps of each contender.
        optimizer_turns: turns of T steps for optimizers alone.
        classes, batches, densities, positions: values of the scaling axes.
        scaling_dataset: its classes are used on the axis `classes`.
        most_reference_classes: the reference is not scaled beyond this number.
        reference_limit_mib: memory for the reference; None: the machine's free memory.
        extrapolate_from: two numbers of classes, to extrapolate from if the reference does not fit.
        step_contenders: contenders of timed steps, the reference first.
        cost_contenders: contenders of counted steps, the reference first.
        main_contenders: those of them that are scaled, and counted for all `flop_datasets`.
        graph_batches: images in steps that are eager and captured.
        launch_batch: images in steps whose operations are counted, in launch_precision.
    """

    architecture: str
    small_architecture: str
    step_batch: int
    cost_batch: int
    step_datasets: Sequence[str]
    flop_datasets: Sequence[str]
    memory_datasets: Sequence[str]
    rounds: int
    scaling_rounds: int
    optimizer_turns: int
    classes: Sequence[int]
    batches: Sequence[int]
    densities: Sequence[float]
    positions: Sequence[str]
    scaling_dataset: str
    most_reference_classes: int
    reference_limit_mib: float | None
    extrapolate_from: tuple[int, int]
    step_contenders: Sequence[Contender]
    cost_contenders: Sequence[Contender]
    main_contenders: Sequence[Contender]
    precision: str = "fp32"
    graph_batches: Sequence[int] = (32, 128)
    launch_batch: int = 32
    launch_precision: str = "bf16"


FULL = Plan(
    architecture="ViT-B-16-quickgelu",
    small_architecture="ViT-B-32-quickgelu",
    step_batch=8,
    cost_batch=32,
    step_datasets=SHAPED_LIKE,
    flop_datasets=[
        name
        for name in card_names()
        if name not in ("digits", "textile") and load_card(name).sizes["train"]
    ],
    memory_datasets=SHAPED_LIKE,
    rounds=3,
    scaling_rounds=2,
    optimizer_turns=3,
    classes=(10, 50, 100, 1000),
    batches=(2, 8, 32),
    densities=(5e-5, 5e-4, 5e-3, 5e-2),
    positions=("top", "half-up", "all"),
    scaling_dataset="imagenet",
    most_reference_classes=100,
    reference_limit_mib=None,
    extrapolate_from=(100, 300),
    step_contenders=(REFERENCE, LORA, ADAMW, ENGINE, BALANCED, SMALL),
    cost_contenders=(*CONTENDERS, LORA_BALANCED, LORA_SMALL),
    main_contenders=(REFERENCE, LORA, ADAMW, BALANCED),
)

# A GPU is fast enough for the paper's batch; bf16 is the default precision of runs on it.
CUDA = replace(FULL, step_batch=32, rounds=8, scaling_rounds=8, precision="bf16")

QUICK = Plan(
    architecture="tiny",
    small_architecture="tiny",
    step_batch=2,
    cost_batch=2,
    step_datasets=("digits", "dtd"),
    flop_datasets=("digits", "eurosat"),
    memory_datasets=("digits",),
    rounds=1,
    scaling_rounds=1,
    optimizer_turns=1,
    classes=(4,),
    batches=(1,),
    densities=(5e-2,),
    positions=("top",),
    scaling_dataset="dtd",
    most_reference_classes=3,
    reference_limit_mib=40,
    extrapolate_from=(10, 40),
    step_contenders=(REFERENCE, LORA, ADAMW, BALANCED),
    cost_contenders=(REFERENCE, ENGINE, BALANCED),
    main_contenders=(REFERENCE, BALANCED),
    graph_batches=(2, 3),
    launch_batch=2,
)
