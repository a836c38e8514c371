"""What a list of images holds, file by file, as one number."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from so_clip.data.images import ImageSource

_PATHS_PER_TASK = 64
# A bar appears only where files are slow to read.
_PATIENCE_SECONDS = 2


def images_sha256(images: ImageSource, paths: Sequence[str], workers: int) -> str:
    """Return the SHA-256 of what lies at each of the paths, in their order.

    Raises:
        InputError: the first image, in order, that cannot be read.
    """

    def digests(some: Sequence[str]) -> bytes:
        return b"".join(hashlib.sha256(images.content(path)).digest() for path in some)

    tasks = [
        paths[start : start + _PATHS_PER_TASK] for start in range(0, len(paths), _PATHS_PER_TASK)
    ]
    total = hashlib.sha256()
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="digest") as pool:
        try:
            results = pool.map(digests, tasks)
            bar = tqdm(results, "look up", len(tasks), delay=_PATIENCE_SECONDS, disable=None)
            for each in bar:
                total.update(each)
        finally:
            # After an error nobody wants the rest.
            pool.shutdown(cancel_futures=True)
    return total.hexdigest()
