"""Captions of the rendered pictures, and which caption fits which picture.

A caption names some of a picture's attributes. It fits every picture that has all of these, not
only the one it was written for: in a batch with thirty threes, "a photo of a three." has thirty
right answers, and the loss uses all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Caption(NamedTuple):
    """A text and the attributes that it names."""

    text: str
    names: frozenset[str]


# {name}, {ink}, {ground} and {style} are values of attributes; every picture of a kind has those in
# its kind's templates. The plain template comes first and is used most.
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "digit": (
        "a photo of a {name}.", "a photo of the number {name}.", "the digit {name}.",
        "a {style} {name}.", "a photo of a {style} {name}.", "a {ink} {name}.",
        "a {ink} {style} {name} on a {ground} background.", "a picture of the digit {name}.",
    ),
    "letter": (
        "a photo of a {name}.", "a photo of the {name}.", "the {name}.", "a {ink} {name}.",
        "a {style} {name}.", "the {name} in {ink} on a {ground} background.",
    ),
    "shape": (
        "a photo of a {name}.", "a {name}.", "a {ink} {name}.",
        "a {ink} {name} on a {ground} background.",
    ),
    "texture": (
        "a photo of a {name}.", "a {name} texture.", "a photo of a {name} pattern.",
        "a {name} {ink} and {ground} texture.",
    ),
    "land": (
        "a photo of a {name}.", "a satellite photo of {name} land.",
        "a centered satellite photo of {name}.", "a {name} seen from above.",
    ),
}  # fmt: skip
_LAND_WORDS = {
    "name:crop": ("crop", "annual crop land", "permanent crop land"),
    "name:forest": ("forest", "trees"),
    "name:pasture": ("pasture", "pasture land", "herbaceous vegetation land"),
    "name:highway": ("highway", "road", "highway or road"),
    "name:residential": ("residential", "residential buildings", "houses"),
    "name:industrial": ("industrial", "industrial buildings", "factory"),
    "name:lake": ("lake", "sea or lake", "sea"),
}
PLAIN_SHARE = 0.5  # this share of the captions uses the plain template


def caption(generator: np.random.Generator, attributes: frozenset[str]) -> Caption:
    """Write a caption for a picture with these attributes."""
    values = dict(attribute.split(":", 1) for attribute in attributes)
    templates = _TEMPLATES[values["kind"]]
    choice = 0 if generator.random() < PLAIN_SHARE else int(generator.integers(len(templates)))
    template = templates[choice]
    named = frozenset(a for a in attributes if "{" + a.split(":", 1)[0] + "}" in template)
    words = _LAND_WORDS.get(f"name:{values['name']}")
    if words:
        values["name"] = words[generator.integers(len(words))]
    return Caption(template.format(**values), named)


def multi_hot(sets: list[frozenset[str]], vocabulary: list[str]) -> np.ndarray:
    """Return a matrix sets x vocabulary of 0 and 1 (float32)."""
    place = {attribute: i for i, attribute in enumerate(vocabulary)}
    matrix_NA = np.zeros((len(sets), len(vocabulary)), np.float32)
    for row, attributes in enumerate(sets):
        matrix_NA[row, [place[a] for a in attributes]] = 1
    return matrix_NA


def fits(pictures_BA: np.ndarray, captions_UA: np.ndarray) -> np.ndarray:
    """Return a boolean matrix BU: does picture b have all that caption u names?"""
    return pictures_BA @ captions_UA.T == captions_UA.sum(1)
