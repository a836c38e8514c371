"""The objects that pages of the documentation are given: `<!-- given: model, batches -->`.

Each function makes the object of its name. `<!-- given: model=small_bert -->` takes another
function. The packages of these objects are imported where they are needed.
"""

from pathlib import Path
from typing import Any


def model() -> Any:
    """Return a small classifier of vectors."""
    from tests.helpers.other_trainers import network

    return network()


def small_resnet() -> Any:
    """Return a small ResNet of torchvision."""
    from tests.helpers import other_trainers

    return other_trainers.small_resnet()


def small_bert() -> Any:
    """Return a small BERT of transformers with a classifier."""
    from tests.helpers import other_trainers

    return other_trainers.small_bert()


def batches() -> Any:
    """Return batches of vectors and labels for `model`."""
    from tests.helpers.other_trainers import in_batches, vectors

    return in_batches(vectors())


def loader() -> Any:
    """Return a DataLoader of vectors and labels."""
    from torch.utils.data import DataLoader

    from tests.helpers.other_trainers import vectors

    return DataLoader(list(zip(*vectors(), strict=True)), batch_size=8)


def loss_fn() -> Any:
    """Return the loss of `model`."""
    from torch.nn import functional

    return functional.cross_entropy


def dataset() -> Any:
    """Return token rows with labels for `small_bert`."""
    from tests.helpers.other_trainers import sentences

    return sentences()


def arguments() -> Any:
    """Return TrainingArguments for some steps on the CPU."""
    from tests.helpers.other_trainers import trainer_arguments, transformers_trainer

    transformers_trainer()
    return trainer_arguments(Path("trainer"), max_steps=3)


def accelerator() -> Any:
    """Return an Accelerator on the CPU."""
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def Task() -> Any:
    """Return a LightningModule without an optimizer."""
    from tests.helpers.other_trainers import lightning_task, network

    return lightning_task(network())


def lightning() -> Any:
    """Return a Trainer of Lightning on the CPU."""
    from tests.helpers.other_trainers import lightning_trainer

    return lightning_trainer(Path("lightning"), max_steps=3)


def clip_folder() -> Path:
    """Write a small CLIP of transformers into the folder `mine`, and return the folder."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    config = CLIPConfig(text_config=sizes, vision_config=sizes | {"image_size": 32})
    folder = Path("mine")
    CLIPModel(config).save_pretrained(folder)
    return folder
