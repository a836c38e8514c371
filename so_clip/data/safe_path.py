"""Check that a path from a file stays inside its folder."""


def why_outside(path: str) -> str:
    """Return why `path` may lead out of its folder; "" if it stays inside.

    The text alone decides, by the rules of all operating systems together, so that every machine
    refuses the same files. Links below the data root are followed: users often link large
    datasets into place.

    Args:
        path: a relative path with forward slashes, from a card or a split file.
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
