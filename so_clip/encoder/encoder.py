"""The encoder: a model of transformers for sequence classification, with its tokenizer.

Tensor names end in their shape: B sentences or pairs of a batch, 3 rows (ids, attention mask, token
types), L tokens, K classes.
"""

import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.adaptable import Encoder
from so_clip.clip.backbone import sha256_of_weights
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.tower_blocks import blocks_in
from so_clip.clip.roles import Part
from so_clip.clip.towers import Tower
from so_clip.encoder.packed import can_pack, pack, packed_encoder, packed_inputs
from so_clip.encoder.roles import encoder_blocks, encoder_roles
from so_clip.errors import InputError, reason_of
from so_clip.system.atomic import CannotWrite

_NO_LIMIT = 2**20  # tokens


class SentenceEncoder(Encoder):
    """A model of transformers with the few calls that adaptation needs.

    Args:
        model: a `...ForSequenceClassification` with eager attention. Its dropout draws from the
            global generator alone.
        tokenizer: of transformers; None for an encoder without weights.
        description: family and origin of the weights, for records and messages.
        new: the names of the parameters that the files do not have.
        files_sha256: of config.json and of the tokenizer's files; "" without them.

    Attributes:
        memory: fast | balanced | small, what is kept for the backward pass; see
            `so_clip.clip.engine.tower_blocks`.
        has_token_types: whether the model embeds token types. Without them, both sentences of a
            pair differ only in their places.
        most_tokens: the longest input, tokens.
        pad_id: the token that fills up a batch.
        packs: whether padding is left out of all layers but attention; see
            `so_clip.encoder.packed`.
    """

    towers = ("text",)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        description: str = "",
        new: Sequence[str] = (),
        files_sha256: str = "",
    ) -> None:
        super().__init__()
        self.model = model
        self.memory: Memory = "fast"
        self.description = description
        self.has_text = False
        self.new = frozenset(new)
        self.has_token_types = _has_token_types(model)
        self.most_tokens = _most_tokens(model)
        self.packs = can_pack(model)
        self.pad_id: int = next(
            (
                place.pad_token_id
                for place in (tokenizer, model.config)
                if getattr(place, "pad_token_id", None) is not None
            ),
            0,
        )
        self._tokenizer = tokenizer
        self._files_sha256 = files_sha256
        self._parts: tuple[tuple[str, ...], list[Part]] | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers; InputError for an encoder without files."""
        if self._tokenizer is None:
            raise InputError(f"{self.description} has no tokenizer: its files are not loaded.")
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def classes(self) -> int:
        """K."""
        return int(self.model.config.num_labels)

    def logits(self, tokens_B3L: Tensor) -> Tensor:
        """Return logits_BK in float32, even under autocast, for a padded batch."""
        inputs = self.inputs(tokens_B3L)
        context: AbstractContextManager[None] = nullcontext()
        if self.packs:
            packing = pack(tokens_B3L[:, 1])
            inputs = packed_inputs(self.model, inputs, packing)
            context = packed_encoder(self.model, self.memory, packing)
        else:
            context = blocks_in(self.model, self.memory)
        with context:
            logits_BK: Tensor = self.model(**inputs, return_dict=True).logits
        return logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float()

    def inputs(self, tokens_B3L: Tensor) -> dict[str, Tensor]:
        """Return the arguments of the model's forward pass."""
        ids_BL, mask_BL, types_BL = tokens_B3L.unbind(dim=1)
        types = {"token_type_ids": types_BL} if self.has_token_types else {}
        return {"input_ids": ids_BL, "attention_mask": mask_BL, **types}

    def example(self) -> Tensor:
        """Return tokens_B3L of one short sentence, for checks."""
        tokens_B3L = torch.zeros(1, 3, 4, dtype=torch.int64, device=self.device)
        tokens_B3L[:, 1] = 1
        return tokens_B3L

    def role_map(self) -> list[Part]:
        """Return the parts of the model: see so_clip.encoder.roles. Call it before an adapter."""
        names = tuple(name for name, _ in self.model.named_parameters())
        if self._parts is None or self._parts[0] != names:
            self._parts = names, encoder_roles(self.model, self.inputs(self.example()))
        return self._parts[1]

    @property
    def known_parts(self) -> list[Part]:
        """The last role map: that of the model before an adapter. [] if it was never asked for."""
        return [] if self._parts is None else self._parts[1]

    def named_blocks(self, tower: Tower) -> list[tuple[str, nn.Module]]:
        """Return the residual blocks and their names, from input to output.

        Raises:
            InputError: the tower is not `text`, or the model has no list of blocks.
        """
        blocks = encoder_blocks(self.model) if tower == "text" else []
        if not blocks:
            raise InputError(
                f"{self.description} has no blocks of a {tower} tower to choose from. Use "
                "adapter.position=all."
            )
        return blocks

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights that were loaded, and of the other files that change a result.

        Parameters that a seed drew are not in it. To record the origin of the weights, read it
        before training.
        """
        state = self.model.state_dict()
        weights = sha256_of_weights({k: v for k, v in state.items() if k not in self.new})
        return hashlib.sha256(f"{weights} {self._files_sha256}".encode()).hexdigest()

    def save(self, folder: Path, label_names: Sequence[str] = ()) -> None:
        """Write the model and its tokenizer as a folder that transformers loads.

        The folder appears whole, in place of an older one.

        Args:
            folder: to write.
            label_names: of the K classes, for the predictions of transformers. Without names they
                do not change: LABEL_0 to LABEL_{K-1} for a new classifier.

        Raises:
            CannotWrite: the folder cannot be written, or the disk is full; nothing is left.
        """
        from safetensors import SafetensorError

        if label_names:
            self.model.config.id2label = dict(enumerate(label_names))
            self.model.config.label2id = {name: k for k, name in enumerate(label_names)}
        staging: Path | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(".partial", f".{folder.name}.", folder.parent))
            whole, before = staging / "whole", staging / "before"
            with quiet():
                self.model.save_pretrained(whole)
                self.tokenizer.save_pretrained(whole)
            _sync(whole)
            if folder.exists():
                folder.rename(before)
            whole.rename(folder)
        except (OSError, SafetensorError) as error:
            raise CannotWrite(f"cannot write {folder}: {reason_of(error)}.") from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)


def _has_token_types(model: Any) -> bool:
    is_input = "token_type_ids" in inspect.signature(type(model).forward).parameters
    return is_input and getattr(model.config, "type_vocab_size", 0) > 1


def _most_tokens(model: Any) -> int:
    """Return the number of tokens that the table of positions, or else the configuration, allows.

    RoBERTa and similar models count positions from the one after the padding's.
    """
    for name, module in model.named_modules():
        if name.endswith(".position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return int(getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT)


def _sync(folder: Path) -> None:
    """Write a folder's files to disk."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing reports and progress bars in this context."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
