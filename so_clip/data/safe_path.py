"""Whether a path that a file names stays below the folder it is meant for."""


def why_outside(path: str) -> str:
    """Say why `path` cannot be trusted to stay inside a folder; "" when it can.

    Only the text is judged, by the rules of every operating system at once, so that a file which
    is refused on one machine is refused on all. Links that the user laid below the data root are
    the user's own business and are followed: large datasets are often linked into place.

    Args:
        path: a relative path with forward slashes, as a card or a split file gives it.
    """
    if not path:
        return "it is empty"
    if "\0" in path:
        return "it holds a NUL character"
    if "\\" in path:
        return "it holds a backslash, and folders are separated by forward slashes"
    if path.startswith("/"):
        return "it is absolute"
    if path[1:2] == ":":
        return "it begins with a drive letter"
    parts = path.split("/")
    if ".." in parts:
        return "it climbs out with '..'"
    if parts[-1] in ("", "."):
        return "it names a folder"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return ""
