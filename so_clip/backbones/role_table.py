"""One model in detail: the roles of its parameters, its published weights, and its methods."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.backbones.methods import method_names, refusals
from so_clip.backbones.models import (
    TowerSize,
    check_can_build,
    groups,
    groups_of,
    hub_files,
    local_config,
    tower_size,
)
from so_clip.backbones.without_weights import backbone_without_weights
from so_clip.clip.load import EMBEDDED
from so_clip.clip.loading.architecture_names import TINY, is_place
from so_clip.clip.loading.sources import place_pixels
from so_clip.clip.pixels import (
    Preprocessing,
    named_preprocessing,
    preprocessing_from,
    published_preprocessing,
)
from so_clip.clip.roles import ROLES, Part
from so_clip.clip.towers import TOWERS, named_blocks

_ITS_OWN = "its own"


@dataclass(frozen=True)
class RoleRow:
    """The parameters of one role in a tower.

    Attributes:
        tensors, weights: their number, and the number of their weights.
        shapes: with the number of tensors of each, the most frequent first.
        example: the name of the first.
    """

    role: str
    tensors: int
    weights: int
    shapes: list[tuple[list[int], int]]
    example: str


@dataclass(frozen=True)
class TowerMap:
    """A tower: its size, the names of its first and last block, and its roles."""

    size: TowerSize
    first_block: str
    last_block: str
    roles: list[RoleRow]


@dataclass(frozen=True)
class ModelMap:
    """A model in detail.

    Attributes:
        towers: vision, and text if there is a text tower.
        published: the preprocessing of each published weights, by their tag.
        applies: the methods that apply.
        refused: the other methods, each with the reason.
    """

    architecture: str
    groups: list[str]
    image_size: int
    context_length: int
    dimensions: int
    hub_files: list[str]
    towers: dict[str, TowerMap]
    published: dict[str, Preprocessing]
    applies: list[str]
    refused: dict[str, str]

    def record(self) -> dict[str, Any]:
        """Return the map as JSON values."""
        published = {tag: kind.record() for tag, kind in self.published.items()}
        return asdict(self) | {"published": published}


def architecture_of(name: str) -> str:
    """Return the architecture that a group of conf/backbone stands for; other names as given."""
    return str(groups()[name]["architecture"]) if name in groups() else name


def model_map(name: str, report: Callable[[str], None]) -> ModelMap:
    """Return a model in detail.

    Args:
        name: of an architecture, also of a place: hf-hub:ORG/NAME or local-dir:PATH.
        report: called with the name of each stage before its work.

    Raises:
        InputError: the model cannot be built here.
    """
    config = local_config(name)
    check_can_build(config, name)
    report("building the model")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    backbone = backbone_without_weights(name, config, mode)
    report("mapping the parameters")
    with mode:
        parts = backbone.role_map()
    report("trying the methods")
    refused = refusals(backbone_without_weights(name, config, mode, cut=True), mode)
    return ModelMap(
        architecture=name,
        groups=groups_of(name),
        image_size=backbone.image_size,
        context_length=backbone.context_length,
        dimensions=backbone.dimensions,
        hub_files=hub_files(config),
        towers={
            tower: _tower_map(backbone.model, tower, parts)
            for tower in (TOWERS if backbone.has_text else TOWERS[:1])
        },
        published=_published(name),
        applies=[method for method in method_names() if method not in refused],
        refused=refused,
    )


def _published(name: str) -> dict[str, Preprocessing]:
    if name == TINY:
        return {EMBEDDED: named_preprocessing(TINY, EMBEDDED)}
    if is_place(name):  # its weights have no tag: backbone.pretrained stays out
        return {_ITS_OWN: preprocessing_from(place_pixels(name), name)}
    return published_preprocessing(name)


def _tower_map(model: nn.Module, tower: Any, parts: list[Part]) -> TowerMap:
    own = [part for part in parts if part.tower == tower]
    by_role = {role: [part for part in own if role in part.roles] for role in ROLES}
    blocks = [name for name, _ in named_blocks(model, tower)] or [""]
    return TowerMap(
        size=tower_size(model, tower),
        first_block=blocks[0],
        last_block=blocks[-1],
        roles=[_role_row(role, found) for role, found in by_role.items() if found],
    )


def _role_row(role: str, parts: list[Part]) -> RoleRow:
    counted = Counter(part.shape for part in parts)
    return RoleRow(
        role=role,
        tensors=len(parts),
        weights=sum(math.prod(part.shape) for part in parts),
        shapes=[(list(shape), count) for shape, count in counted.most_common()],
        example=parts[0].name,
    )
