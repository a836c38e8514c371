"""The sources on a card: where to get the images and the split file of a dataset.

`sources` in a card is a list, in the order of trial. A source is a mapping:

    kind: archive | parquet | videos | file | registration
    holds: images | split file | sentences
    files:                        # all are needed
      - url: https://…            # http or https
        name: EuroSAT.zip         # the file's name on disk; default: the last part of the URL
        md5: …  or  sha256: …     # only if published; otherwise counts are checked
        below: cars_train         # parquet: images of this file are below this folder
    name_column: image_id         # parquet: the column of file names, if not in the image itself
    listing: https://…            # parquet: JSON that names the files, in place of `files`
    url: https://…                # registration: the page for people

`archive` is a zip or tar with any folders; `parquet` is a set in Hugging Face's layout. The images
of `videos` are the middle frames: of videos that the user has (no files), or of archives (files).
`registration` is never downloaded. The files of `sentences` are read directly: parquet files, or
one archive of tsv files.

torchvision's loaders download the same archives of the authors, and the checksums are those that
torchvision publishes. Pinned revisions of Hugging Face need no checksum.
"""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from so_clip.checks import problem_text
from so_clip.data.cards.card import DatasetCard
from so_clip.data.safe_path import why_outside
from so_clip.data.sentences.card import SentenceCard
from so_clip.errors import InputError, nearest

IMAGES, SPLIT, SENTENCES = "images", "split file", "sentences"
NO_SOURCE = "the card names no source."


class SourceFailed(Exception):
    """A source cannot be used, so the next one is tried. The message names URL, file and way out.

    Attributes:
        spoiled: the source's files are bad and must not be used again.
    """

    def __init__(self, message: str, spoiled: bool = False) -> None:
        super().__init__(message)
        self.spoiled = spoiled


def _web_address(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"must begin with http:// or https://, not {url!r}.")
    return url


def _path_below(path: str) -> str:
    if path and why_outside(path):
        raise ValueError(f"must name something below a folder, not {path!r}.")
    return path


def _file_name(name: str) -> str:
    if not name or "/" in name:
        raise ValueError(f"must name something below a folder, not {name!r}.")
    return _path_below(name)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RemoteFile(_Entry):
    """A file of a source: its URL, its name on disk, and its checksum if it is known."""

    url: Annotated[str, AfterValidator(_web_address)]
    name: Annotated[str, AfterValidator(_file_name)]
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    below: Annotated[str, AfterValidator(_path_below)] = ""

    @model_validator(mode="before")
    @classmethod
    def _name_by_url(cls, entry: Any) -> Any:
        if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
            return entry
        return {"name": unquote(PurePosixPath(urlsplit(entry["url"]).path).name)} | entry


def _listing(url: Any) -> Any:
    return None if url is None else {"url": url, "name": "listing.json"}


class Source(_Entry):
    """One way to get a dataset's images or its split file; see the module's text."""

    kind: Literal["archive", "parquet", "videos", "file", "registration"]
    holds: Literal["images", "split file", "sentences"]
    files: list[RemoteFile] = Field(default_factory=list)
    name_column: str | None = None
    listing: Annotated[RemoteFile | None, BeforeValidator(_listing)] = None
    url: str | None = None

    @model_validator(mode="after")
    def _check_files(self) -> "Source":
        needs_files = self.kind not in ("videos", "registration") and self.listing is None
        if needs_files and not self.files:
            raise ValueError(f"kind: {self.kind} needs a list of files.")
        if self.kind == "registration" and self.files:
            raise ValueError("kind: registration has no files. Leave them out.")
        return self


def read_sources(card: DatasetCard | SentenceCard, holds: str) -> list[Source]:
    """Return the sources of a card that hold `holds`, in order.

    Args:
        card: the dataset. Sources of its split file get the split file's checksum.
        holds: `IMAGES`, `SPLIT` or `SENTENCES`.

    Raises:
        InputError: a malformed source; the message names card, place and key.
    """
    sources = []
    for index, entry in enumerate(card.sources):
        try:
            source = Source.model_validate(entry)
        except ValidationError as error:
            raise _source_error(error, f"{card.name}.yaml: sources[{index}]") from error
        if source.holds == SPLIT and isinstance(card, DatasetCard):
            for file in source.files:
                file.sha256 = file.sha256 or card.split_sha256
        sources.append(source)
    return [source for source in sources if source.holds == holds]


def _source_error(error: ValidationError, place: str) -> InputError:
    details = error.errors(include_url=False)[0]
    for part in details["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        model = RemoteFile if len(details["loc"]) > 1 else Source
        known = list(model.model_fields)
        near = nearest(str(details["loc"][-1]), known)
        return InputError(f"{place}: is unknown.{near} Known: {', '.join(known)}.")
    problems = {
        "missing": "is missing.",
        "model_type": f"must be a mapping with a url, not {value!r}.",
        "string_pattern_mismatch": "must be 32 (md5) or 64 (sha256) hexadecimal digits.",
    }
    return InputError(f"{place}: {problems.get(kind) or problem_text(details)}")
