"""The options of `python -m so_clip prepare`."""

from pathlib import Path

from so_clip.checks import OptionalPathOption, Options, PathOption, option


class PrepareOptions(Options):
    """Which datasets to prepare, their sources and their destination."""

    dataset: str | None = option(
        None, "a dataset with a card, several (a,b), or all; ImageNet only if you have a copy"
    )
    data_root: PathOption = option("data", "the folder of all datasets")
    imagenet_dir: OptionalPathOption = option(
        None, "your copy of ImageNet, with train/ and val/; it is linked, never downloaded"
    )
    repair: bool = option(
        False, "download damaged split files and images again; ImageNet is never changed"
    )
    keep_archives: bool = option(False, "keep the downloads in data_root/.prepare")
    max_unpacked_gib: float = option(200, "how much the files of one source may unpack to", gt=0)
    retries: int = option(5, "how often a download that makes no progress is tried again", ge=0)
    retry_seconds: float = option(1, "the wait before the first retry; it doubles", ge=0)
    timeout_seconds: float = option(60, "how long a server may send nothing", gt=0)
    cards_dir: OptionalPathOption = option(None, "a folder of your own dataset cards; all is these")
    offline_from: Path | None = option(
        None, "a folder of archives, an unpacked folder, or one archive; nothing is downloaded"
    )
