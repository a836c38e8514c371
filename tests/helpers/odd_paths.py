"""Names that shells, Hydra or OmegaConf give a meaning to."""

ODD_NAMES = [
    "my photos (2)",
    "a,b",
    "x=1",
    "bilder_ä",
    "it's",
    'say "cheese"',
    "[a] {b}",
    "$HOME",
    "${oc.env:HOME}",
    "back\\slash\\",
    "100%",
    "-dash",
    "two\nlines",
]
# All of them at once.
ODDEST = " ".join(ODD_NAMES)
