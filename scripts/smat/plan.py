"""The plan of scripts/smat_experiment.py: sizes, datasets and contenders."""

from dataclasses import dataclass

from scripts.smat.families import families
from scripts.smat.render import EUROSAT, VALIDATION

Words = tuple[str, ...]

TEXTILE, DIGITS = "textile", "digits"
# The tiny model cannot read clocks at 32 pixels: every method is close to chance.
LEFT_OUT = ("clocks",)
# Datasets on which rates are chosen: letters, objects and relations.
TUNED_ON = ("georgian_letters", "pictograms", "scenes")
# Targets that are also tested on all classes at once: many classes, few, and photographs.
ALL_WAY = ("pictograms", "scenes", EUROSAT)
SHOTS = 4
# As in the demo: a mirrored or halved letter is no letter.
COMMON: Words = ("backbone=tiny", "threads=1", "augment.flip=false", "augment.scale=[0.6,1.0]")
# Tasks of a test have a few classes of a dataset; the fabric has three in all.
EPISODES: Words = ("episodes.ways=[3,12]", "episodes.queries=10", f"shots={SHOTS}")
# The share of the image tower's matrices that every method of the second table trains: 3,500
# entries, as many as the norms of the image tower have.
DENSITY = 3e-3
# SO's density in the first table; on digits it is better than the paper's for small matrices.
SO_DENSITY = 1e-2
SMAT, UNTRAINED = "smat", "untrained"


@dataclass(frozen=True)
class Sizes:
    """What decides how long the experiment takes.

    Attributes:
        meta_tasks: of the meta-training.
        validation_tasks: of each source, three times in the meta-training.
        tuning_tasks: of each dataset and rate.
        tasks: test tasks of each target for a method of the first table that trains.
        mask_tasks: the same for the second table.
        quick_tasks: the same for a method that does not train. The first tasks are the same ones.
        steps: of each adaptation.
        seeds: of the runs on all classes.
        images: rendered of each class.
    """

    meta_tasks: int = 1000
    validation_tasks: int = 6
    tuning_tasks: int = 2
    tasks: int = 8
    mask_tasks: int = 4
    quick_tasks: int = 24
    steps: int = 30
    seeds: tuple[int, ...] = (1, 2, 3)
    images: int = 56


FULL = Sizes()
SMALL = Sizes(
    meta_tasks=16,
    validation_tasks=1,
    tuning_tasks=2,
    tasks=3,
    mask_tasks=3,
    quick_tasks=4,
    steps=3,
    seeds=(1,),
    images=40,
)


@dataclass(frozen=True)
class Contender:
    """One method of a table.

    Attributes:
        name: for files and the table.
        title: for people.
        words: what chooses the method on the command line.
        rates: learning rates to choose from; () for a method that does not train.
        checkpoint: the meta-training that the method starts from: SMAT, UNTRAINED or None.
    """

    name: str
    title: str
    words: Words
    rates: tuple[float, ...] = ()
    checkpoint: str | None = None


@dataclass(frozen=True)
class Datasets:
    """Names of datasets: to meta-train on, to test on, and to choose rates on."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    tuning: tuple[str, ...]


def datasets(with_eurosat: bool, with_textile: bool) -> Datasets:
    """Return the datasets of the experiment.

    Args:
        with_eurosat: whether the copy of EuroSAT exists.
        with_textile: whether the package of the fabric images is installed.
    """
    known = {name: family for name, family in families().items() if name not in LEFT_OUT}
    held_out = [name for name, family in known.items() if family.held_out]
    optional = ((EUROSAT, with_eurosat), (TEXTILE, with_textile))
    return Datasets(
        sources=(*(name for name in known if name not in held_out), DIGITS),
        targets=(*held_out, *(name for name, exists in optional if exists)),
        tuning=tuple(VALIDATION.format(name) for name in TUNED_ON),
    )


def meta_words(sizes: Sizes) -> Words:
    """Return the options of the meta-training, as chosen on the novel classes of the sources.

    The schedule of 1e5 tasks is squeezed into a thousand, so the rates are far above the paper's.
    The head is that of prototypes: the tiny model knows no name of most classes.
    """
    tasks = sizes.meta_tasks
    return (
        f"training.tasks={tasks}",
        "training.tasks_per_update=2",
        "training.head=prototype",
        "training.delta_lr=0.05",
        "training.mask_lr=1e6",
        "training.lambda_lr=0.03",
        "adapter.sparsity=0.9",
        f"validation_tasks={sizes.validation_tasks}",
        f"validate_every={tasks // 3}",
    )


def untrained_words() -> Words:
    """Return the options of a checkpoint whose experts change nothing: a control."""
    return (
        *("training.tasks=1", "training.tasks_per_update=1", "training.delta_lr=0"),
        *("training.head=prototype", "validation_tasks=0", "select=last"),
    )


_PROTOTYPE = "adapter.head=prototype"
_VISION = "adapter.encoder=vision"
_SO = f"optimizer.density_ratio={SO_DENSITY:g}"


def table_one() -> list[Contender]:
    """Return the methods of the first table."""
    dense, sparse = (2e-4, 6e-4, 2e-3), (2e-3, 1e-2, 5e-2)
    tuned = ("method=smat", _PROTOTYPE, _VISION)
    return [
        Contender("zero_shot", "zero-shot", ("method=zero_shot",)),
        Contender("prototypes", "prototypes", ("method=prototypes",)),
        Contender("smat_text", "SMAT, text head", ("method=smat",), (), SMAT),
        Contender("smat_prototype", "SMAT, prototypes", ("method=smat", _PROTOTYPE), (), SMAT),
        Contender(
            "smat_mean", "SMAT, mean of both", ("method=smat", "adapter.head=mean"), (), SMAT
        ),
        Contender("tip_adapter_f", "Tip-Adapter-F", ("method=tip_adapter_f",), (1e-3, 3e-3, 1e-2)),
        Contender("clip_lora", "CLIP-LoRA", ("method=clip_lora",), (2e-3, 6e-3, 2e-2)),
        Contender("adamw", "AdamW (dense)", ("method=adamw",), dense),
        Contender("so", "SO", ("method=so", _SO), sparse),
        Contender(
            "prototypes_adamw",
            "prototypes + AdamW (no meta-training)",
            (*tuned, "optimizer=adamw"),
            dense,
            UNTRAINED,
        ),
        Contender("smat_adamw", "SMAT + AdamW", (*tuned, "optimizer=adamw"), dense, SMAT),
        Contender("smat_so", "SMAT + SO", (*tuned, "optimizer=so", _SO), sparse, SMAT),
        Contender(
            "smat_clip_lora",
            "SMAT + CLIP-LoRA",
            ("method=smat_clip_lora", _PROTOTYPE, _VISION),
            (2e-3, 6e-3, 2e-2),
            SMAT,
        ),
    ]


def table_two() -> list[Contender]:
    """Return the methods of the second table: the same number of trained entries."""
    rates = (6e-3, 2e-2, 6e-2)
    density = f"adapter.density_ratio={DENSITY:g}"

    def entries(method: str, title: str, checkpoint: str | None = None) -> Contender:
        return Contender(method, title, (f"method={method}", _VISION, density), rates, checkpoint)

    moving = ("method=so", _VISION, f"optimizer.density_ratio={DENSITY:g}")
    return [
        entries("smat_masks", "SMAT's masks", SMAT),
        entries("sparse_layer_norm", "LayerNorm"),
        entries("sparse_bias", "biases"),
        entries("sparse_attention", "attention"),
        entries("sparse_value_output", "value and output"),
        entries("sparse_last_blocks", "last three blocks"),
        entries("sparta", "random, fixed"),
        entries("magnitude", "largest weights"),
        Contender("so_moving", "SO's moving support", moving, rates),
        Contender("dense", "AdamW on all entries", ("method=adamw", _VISION), (2e-4, 6e-4, 2e-3)),
    ]
