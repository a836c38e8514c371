"""The keys of a card's file and the kind of value of each: a pydantic model."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from so_clip.checks import problem_text
from so_clip.data.plain_files import shortened
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError, nearest

# Layouts that hold test images only, in one folder per class. The folder's name is a WordNet id
# or a label.
TEST_LAYOUTS = ("wordnet_folders", "numbered_folders")
PACKAGE_LAYOUT = "package_folders"
LAYOUTS = ("split_file", "imagenet", "fgvc_aircraft", "digits", PACKAGE_LAYOUT, *TEST_LAYOUTS)
# What pydantic's types of errors mean in a card, beside those that checks.problem_text explains.
_PROBLEMS = {
    "missing": "is missing",
    "string_type": "must be text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must hold something",
}
# More than the images of any dataset, and more than the pixels of any image.
MAX_COUNT = 10**9


def rule(is_good: Callable[[Any], bool], problem: str) -> PlainValidator:
    """Return a validator that refuses all other values with "must be PROBLEM, not VALUE"."""

    def validate(value: Any) -> Any:
        if not is_good(value):
            raise ValueError(f"must be {problem}, not {shortened(value)}")
        return value

    return PlainValidator(validate)


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _count_from(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= MAX_COUNT


def _below_data_root(path: str) -> str:
    if reason := why_outside(path):
        raise ValueError(f"must be a path below the data root: {path!r}, {reason}")
    return path


def _folder_name(name: str) -> str:
    if why_outside(name) or "/" in name:
        raise ValueError(f"must be the name of a folder: {name!r}")
    return name


def _not_blank(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"must be text, not {value!r}")
    return value


def _unless(allowed: str, validate: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: text if text == allowed else validate(text)


Count = Annotated[int, rule(_count_from(0), "a whole number, 0 to a billion")]
Pixels = Annotated[int, rule(_count_from(1), "a whole number above 0")]
Sha256 = Annotated[str, rule(_matches("[0-9a-f]{64}"), "64 hexadecimal digits")]
Template = Annotated[
    str, rule(_matches(r"[^{}]*\{\}[^{}]*"), "text with one {} for the class name")
]
Text = Annotated[str, BeforeValidator(_not_blank)]
Below = Annotated[Text, AfterValidator(_below_data_root)]
FolderName = Annotated[Text, AfterValidator(_folder_name)]


class Strict(BaseModel):
    """Base of all parts of a card: strictly typed, without unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Sizes(Strict):
    """Full size: the number of classes, and of images in each list."""

    classes: Count
    train: Count
    val: Count
    test: Count


class Templates(Strict):
    """Prompts with one {} for the class name."""

    plain: Template
    specific: Template
    ensemble: Annotated[list[Template], Field(min_length=1)] | None = None


class Package(Strict):
    """An installed package: the module to import, and the requirement that pip installs."""

    module: Annotated[str, rule(_matches(r"[A-Za-z_]\w*"), "the name of a package")]
    install: Annotated[
        str, rule(_matches(r"[A-Za-z0-9][\w.\[\],=<>~!-]*"), "the name of a package")
    ]


_NESTED: dict[str, type[BaseModel]] = {"sizes": Sizes, "templates": Templates, "package": Package}


class CardFile(Strict):
    """The content of a card's file. DatasetCard explains the keys."""

    name: Text
    title: Text
    layout: Text
    folder: Below
    image_dir: Annotated[str, AfterValidator(_unless("", _below_data_root))]
    sizes: Sizes
    templates: Templates
    licence: Text
    homepage: Text
    citation: Text
    class_names: Annotated[list[Text], Field(min_length=1)]
    split_file: Below | None = None
    split_sha256: Sha256 | None = None
    sources: list[dict[Any, Any]] | None = None
    class_folders: Annotated[list[FolderName], Field(min_length=1)] | None = None
    classes_of: str | None = None
    package: Package | None = None
    image_pixels: Pixels | None = None
    other_folders: (
        Annotated[
            list[Annotated[Text, AfterValidator(_unless(".", _below_data_root))]],
            Field(min_length=1),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _check_layout(self) -> "CardFile":
        if self.layout not in LAYOUTS:
            raise wrong_key("layout", f"must be one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        for key, layout in (("split_file", "split_file"), ("package", PACKAGE_LAYOUT)):
            if (getattr(self, key) is not None) != (self.layout == layout):
                raise wrong_key(key, f"goes with layout: {layout}, and only with it")
        for key in ("class_folders", "split_sha256"):
            if self.package and getattr(self, key) is None:
                raise wrong_key(key, f"is missing, and layout: {self.layout} needs it")
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> "CardFile":
        count, folders = len(self.class_names), self.class_folders
        if problem := problem_of_class_names(self.class_names, folders is not None):
            raise wrong_key(*problem)
        if folders is not None and not len(folders) == len(set(folders)) == count:
            different = len(set(folders))
            raise wrong_key(
                "class_folders",
                f"must name {count} different folders, one per class, not {different}",
            )
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> "CardFile":
        sizes, count = self.sizes, len(self.class_names)
        if sizes.classes != count:
            raise wrong_key(
                "sizes.classes", f"is {sizes.classes}, but class_names holds {count} names"
            )
        if self.layout in TEST_LAYOUTS:
            for key in ("train", "val"):
                if size := getattr(sizes, key):
                    raise wrong_key(
                        f"sizes.{key}", f"must be 0, since the layout has only test images: {size}"
                    )
        elif sizes.train < count:
            raise wrong_key(
                "sizes.train", f"is {sizes.train}, too few: each of {count} classes needs an image"
            )
        if not sizes.test:
            raise wrong_key("sizes.test", "is 0, so that there is nothing to test")
        return self


def problem_of_class_names(names: Sequence[str], have_folders: bool) -> tuple[str, str] | None:
    """Return the key and the problem of the first class name that cannot be used in a prompt.

    Two names that make the same prompt are a problem, unless the classes have their own folders.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name.isprintable() or name != " ".join(name.split()):
            return (
                f"class_names[{index}]",
                f"must be one line, with single blanks and no blanks at its ends, not "
                f"{shortened(name)}",
            )
        first = seen.setdefault(" ".join(name.lower().replace("_", " ").split()), index)
        if first != index and not have_folders:
            return (
                f"class_names[{index}]",
                f"{shortened(name)} makes the same prompt as class_names[{first}]. Give them "
                "different names, or merge the classes",
            )
    return None


def wrong_key(key: str, problem: str) -> PydanticCustomError:
    """Return an error about several keys that names one of them; see card_error."""
    return PydanticCustomError("card", "{problem}", {"key": key, "problem": problem})


def card_error(
    error: ValidationError,
    file: Path,
    card: type[BaseModel] = CardFile,
    nested: Mapping[str, type[BaseModel]] = _NESTED,
) -> InputError:
    """Return a message about the first unknown key, or else about the first error, of a card.

    Args:
        error: of pydantic.
        file: the card's file.
        card: the class of the card's content.
        nested: the classes of its parts, by key.
    """
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    kind, location, context = first["type"], first["loc"], first.get("ctx", {})
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    key = context.get("key", key.removeprefix("."))
    if unknown:
        known = list(nested.get(str(location[0]), card).model_fields)
        near = nearest(str(location[-1]), known)
        return InputError(f"{file}: {key}: is not a known key.{near} Known: {', '.join(known)}.")
    problem = _PROBLEMS.get(kind) or problem_text(first).removesuffix(".")
    if (kind in _PROBLEMS and kind != "missing") or kind.endswith("_type"):
        problem += (
            ", not nothing" if first["input"] is None else f", not {shortened(first['input'])}"
        )
    if kind == "string_type" and isinstance(first["input"], (bool, int, float)):
        problem += ". Put it in quotes"
    return InputError(f"{file}: {key}: {problem}.")
