"""Check every architecture that open_clip builds without a network: role map, blocks, one SO step.

python scripts/walk_backbones.py                  # all of them, on fake tensors
python scripts/walk_backbones.py RN50 EVA02-B-16  # these
python scripts/walk_backbones.py --real RN50      # with random weights: logits against open_clip's

Prints a line for each architecture, and ends with exit code 1 if one has a problem. Fake tensors
have shapes and no values, so that a model of any size takes seconds and no memory.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.roles import GROUPS, Part
from so_clip.clip.towers import TOWERS, image_sides, named_blocks, text_tower
from so_clip.errors import InputError
from so_clip.methods.weights import Weights
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
ROUNDING = 1e-4  # of logits up to 100, in float32
MATRICES = frozenset(GROUPS["matrices"])


def main(argv: Sequence[str] | None = None) -> int:
    """Walk the architectures, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures of open_clip")
    parser.add_argument("--real", action="store_true", help="with weights; compare the logits")
    options = parser.parse_args(argv)
    wrong = walked = 0
    for name in options.names or _offline():
        line, problems = walk(name, options.real)
        print(f"{name:34} {line}", flush=True)
        for problem in problems:
            print(f"    PROBLEM: {problem}", flush=True)
        walked += 1
        wrong += bool(problems)
    print(f"{walked} architectures, {wrong} with problems")
    return int(wrong > 0)


def walk(name: str, real: bool = False) -> tuple[str, list[str]]:
    """Return a line about an architecture, and what is wrong with it.

    Args:
        name: of the architecture.
        real: use random weights, and compare logits with those of open_clip's own code.
    """
    config = architecture_config(name)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    mode = nullcontext() if real else fake
    with mode:
        quick_gelu = bool(config.get("quick_gelu"))
        model: Any = build_model(config, quick_gelu, seed=0).eval().requires_grad_(False)
    tokens_KL = _tokens(model)
    draw = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (2, 3, *image_sides(model)), generator=draw).to(torch.uint8)
    problems: list[str] = []
    with mode, torch.no_grad(), _called_blocks(model) as called:
        pixels_BCHW = (images_BCHW / 255 - 0.5) / 0.25
        image_BD = F.normalize(model.encode_image(pixels_BCHW), dim=-1)
        class_KD = F.normalize(model.encode_text(tokens_KL), dim=-1)
        expected_BK = 100 * image_BD @ class_KD.T
    for tower in TOWERS:
        blocks = [block for block, _ in named_blocks(model, tower)]
        if called[tower] != blocks:
            problems.append(f"the {tower} tower's blocks run in another order: {called[tower]}")
    explicit_attention(model)
    lean_quick_gelu(model)

    def tokens_of(texts: list[str]) -> Tensor:
        return tokens_KL[: len(texts)]  # its length is read; prompts are made by hand

    with mode:
        backbone = Backbone(model, tokens_of, MEAN, STD, description=name).eval()
    parts = backbone.role_map()
    problems += _role_problems(backbone, parts)
    classifier = Classifier(backbone, tokens_KL)
    if real:
        with torch.no_grad():
            difference = (classifier(images_BCHW) - expected_BK).abs().max().item()
        if difference > ROUNDING * 10:
            problems.append(f"logits differ from open_clip's by {difference:.1g}")
        result = f"logits differ by {difference:.0e}"
    else:
        with mode:
            result = _so_step(classifier, images_BCHW, fake, problems)
    counts = " ".join(f"{tower} {_counts(backbone, parts, tower)}" for tower in TOWERS)
    return f"{sum(map(_size, parts)) / 1e6:7.0f} M  {counts}  {result}", problems


def _offline() -> Iterator[str]:
    """Yield all architectures but those whose text tower needs a file from the hub."""
    import open_clip

    for name in open_clip.list_models():
        if "hf_model_name" not in architecture_config(name)["text_cfg"]:
            yield name


@contextmanager
def _called_blocks(model: nn.Module) -> Iterator[dict[str, list[str]]]:
    """Record the names of each tower's blocks in the order in which they run."""
    called: dict[str, list[str]] = {tower: [] for tower in TOWERS}
    hooks = [
        block.register_forward_pre_hook(
            lambda module, inputs, tower=tower, name=name: called[tower].append(name)
        )
        for tower in TOWERS
        for name, block in named_blocks(model, tower)
    ]
    yield called
    for hook in hooks:
        hook.remove()


def _role_problems(backbone: Backbone, parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if not part.roles or "other" in part.roles:
            yield f"{part.name} {part.shape} has no known role"
        if part.roles & MATRICES and len(part.shape) not in (2, 4):
            yield f"{part.name} is a matrix of shape {part.shape}"
    for tower in TOWERS:
        depth = backbone.block_count(tower)
        in_blocks = [part.block for part in parts if part.tower == tower and part.block is not None]
        found = sorted(set(in_blocks))
        if found != [*range(depth)]:
            yield f"the {tower} tower has {depth} blocks, and parameters in {found}"
        matrices = Counter(
            part.block for part in parts if part.tower == tower and part.roles & MATRICES
        )
        if min(matrices.get(block, 0) for block in range(depth)) == 0:
            yield f"a block of the {tower} tower has no matrix"
        blocks = getattr(backbone.model.visual, "transformer", None)
        is_clip = tower == "text" or hasattr(blocks, "resblocks")
        if is_clip and matrices != Counter(dict.fromkeys(range(depth), 4)):
            yield f"the {tower} tower has {matrices.total()} matrices, not 4 in each block"


def _so_step(
    classifier: Classifier, images_BCHW: Tensor, mode: FakeTensorMode, problems: list[str]
) -> str:
    """Take one SO step with sampled gradients; return what happened."""
    try:
        opened = Weights(["matrices"])(classifier)
    except InputError as error:
        return f"refused: {error}"
    for module in classifier.modules():
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(value))
    optimizer = SO(list(opened.values()), density_ratio=5e-4, T=10)
    sampling = sampled_gradients(classifier, optimizer)
    labels_B = torch.zeros(len(images_BCHW), dtype=torch.int64)
    F.cross_entropy(classifier(images_BCHW), labels_B).backward()
    without = [name for name, parameter in opened.items() if parameter.grad is None]
    if without:
        problems.append(f"{len(without)} matrices without a gradient: {without[0]}")
    optimizer.step()
    return f"SO steps; {len(sampling.methods)} of {len(opened)} matrices are sampled"


def _counts(backbone: Backbone, parts: Sequence[Part], tower: Any) -> str:
    matrices = [part for part in parts if part.tower == tower and part.roles & MATRICES]
    return f"{backbone.block_count(tower):2} blocks {len(matrices):3} matrices"


def _size(part: Part) -> int:
    return torch.Size(part.shape).numel()


def _tokens(model: Any) -> Tensor:
    """Return two prompts that begin alike, ids of a token each and the end token."""
    text = text_tower(model)
    vocabulary = text.token_embedding.weight.shape[0]
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
    eos = getattr(text, "text_eos_id", getattr(text, "eos_id", 2))
    end = eos if pool == "eos" else vocabulary - 1
    tokens_KL = torch.zeros(2, model.context_length, dtype=torch.int64)
    tokens_KL[0, :4] = torch.tensor([5, 6, 7, end])
    tokens_KL[1, :5] = torch.tensor([5, 6, 8, 9, end])
    return tokens_KL


if __name__ == "__main__":
    sys.exit(main())
