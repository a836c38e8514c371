"""The packages of the extra `report`."""

from importlib.util import find_spec

from so_clip.errors import InputError

_PACKAGES = ("jinja2", "matplotlib", "scipy")


def require_report_extra() -> None:
    """Check that the packages for LaTeX tables, tests, plots and page are installed.

    Raises:
        InputError: one is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"the report needs {', '.join(missing)}: not installed. "
            "Get it with: pip install 'so-clip[report]'"
        )
