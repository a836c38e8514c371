"""Fixtures every test may use."""

import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A shell's background processes ignore Ctrl-C, and the processes of tests would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, and no test is about time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.hookimpl(tryfirst=True)  # before pytest selects with -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what follows the first cases of a test that is marked fast_cases(number)."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("fast_cases")
        if mark is not None and item.get_closest_marker("slow") is None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material beside the checkout: real split files and EuroSAT images."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared material at {folder}, which is not on this machine")
    return folder


# playwright leaves an event loop running in this thread. Another test that starts one would fail,
# so the browser ends with its module.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a Chromium on the PATH: one of {', '.join(_BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, as in a container.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Return a function that opens an HTML file in a new tab without a network.

    A message on the console and a request for anything but the file fail the test.
    """
    contexts, complaints = [], []

    def opened(
        file: Path, route: str = "", *, width: int = 1280, scheme: str = "light", **more: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **more
        )
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)  # ms; the cores may be busy
        tab.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:"))
                or complaints.append(f"request: {request.url}")
            ),
        )
        tab.goto(f"file://{file}#/{route}")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
