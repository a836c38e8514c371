"""Python that loads an export with its own library and classifies photo.jpg."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_IMPORTS = ("import torch", "from PIL import Image", "from safetensors.torch import load_file")
_CLASSIFY = """\
classes = load_file("classifier.safetensors")
logits_BK = image_BD @ classes["weight"].T + classes["bias"]
class_names = json.loads(Path("classes.json").read_text("utf-8"))["class_names"]
print(class_names[logits_BK.argmax()])
"""
_OPEN_CLIP = """
model = model.eval()
with torch.no_grad():
    image_BD = model.encode_image(preprocess(Image.open("photo.jpg")).unsqueeze(0), normalize=True)
"""
_TRANSFORMERS = """
inputs = processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    image_BD = model.visual_projection(model.vision_model(**inputs).pooler_output)
    image_BD = torch.nn.functional.normalize(image_BD, dim=-1)
"""
_SIGLIP = """
model = SiglipModel.from_pretrained(".").eval()
processor = AutoImageProcessor.from_pretrained(".")
inputs = processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    image_BD = model.vision_model(**inputs).pooler_output
    image_BD = torch.nn.functional.normalize(image_BD, dim=-1)
"""


def open_clip_snippet(
    architecture: str,
    file: str,
    *,
    config_file: str | None = None,
    force_quick_gelu: bool = False,
    preprocess: Mapping[str, Any] | None = None,
) -> str:
    """Return the snippet for `open_clip.create_model`.

    Args:
        architecture: open_clip's name.
        file: the checkpoint.
        config_file: with the architecture's configuration, if open_clip does not know it.
        force_quick_gelu: the name says GELU and the model has QuickGELU.
        preprocess: arguments of open_clip's transform that are not CLIP's.
    """
    options = [_quoted(architecture), f"pretrained={_quoted(file)}"]
    options += ["force_quick_gelu=True"] if force_quick_gelu else []
    arguments = "".join(f"    {option},\n" for option in options)
    added = f"open_clip.add_model_config({_quoted(config_file)})\n" if config_file else ""
    load = f"model, _, preprocess = open_clip.create_model_and_transforms(\n{arguments})"
    if preprocess:
        load = f"model = open_clip.create_model(\n{arguments})\n{_transform(preprocess)}"
    return _snippet(["import open_clip"], added + load + _OPEN_CLIP)


def hub_snippet(repository: str) -> str:
    """Return the snippet that loads a repository of the hub with open_clip."""
    load = f"open_clip.create_model_and_transforms({_quoted(f'hf-hub:{repository}')})"
    return _snippet(["import open_clip"], f"model, _, preprocess = {load}{_OPEN_CLIP}")


def openai_snippet(file: str, preprocess: Mapping[str, Any]) -> str:
    """Return the snippet for open_clip's reader of OpenAI's files; see open_clip_snippet."""
    load = f"""
model = open_clip.load_openai_model({_quoted(file)}, precision="fp32", device="cpu")
{_transform(preprocess)}
"""
    return _snippet(["import open_clip"], load.strip() + _OPEN_CLIP)


def transformers_snippet() -> str:
    """Return the snippet for a folder of transformers."""
    load = """
model = CLIPModel.from_pretrained(".").eval()
processor = CLIPProcessor.from_pretrained(".")
"""
    imports = ["from transformers import CLIPModel, CLIPProcessor"]
    return _snippet(imports, load.strip() + _TRANSFORMERS)


def siglip_snippet() -> str:
    """Return the snippet for a folder with a SiglipModel."""
    return _snippet(["from transformers import AutoImageProcessor, SiglipModel"], _SIGLIP.strip())


def peft_snippet(base: str) -> str:
    """Return the snippet for a folder of peft.

    Args:
        base: repository or folder with the base as transformers' CLIPModel.
    """
    load = f"""
base = CLIPModel.from_pretrained({_quoted(base)})
model = PeftModel.from_pretrained(base, ".").eval()
processor = CLIPProcessor.from_pretrained(".")
"""
    imports = ["from peft import PeftModel", "from transformers import CLIPModel, CLIPProcessor"]
    return _snippet(imports, load.strip() + _TRANSFORMERS)


def _transform(preprocess: Mapping[str, Any]) -> str:
    """Return the line that makes open_clip's test transform."""
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in preprocess.items()
    }
    if not options:
        return "preprocess = open_clip.image_transform(model.visual.image_size, is_train=False)"
    arguments = "".join(f"    {key}={value!r},\n" for key, value in options.items())
    start = "preprocess = open_clip.image_transform(\n    model.visual.image_size,\n"
    return f"{start}    is_train=False,\n{arguments})".replace("'", '"')


def _quoted(text: str) -> str:
    """Return a Python text that ends no code block of Markdown."""
    return json.dumps(text, ensure_ascii=False).replace("`", "\\u0060")


def _snippet(imports: Sequence[str], load: str) -> str:
    lines = sorted({*_IMPORTS, *imports}, key=lambda line: (line.startswith("from"), line.lower()))
    return "\n".join(["import json", "from pathlib import Path", "", *lines, "", load, _CLASSIFY])
