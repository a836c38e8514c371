"""The objects that pages of the documentation are given: `<!-- given: model, batches -->`.

Each function makes the object of its name. `<!-- given: model=small_bert -->` takes another
function. The packages of these objects are imported where they are needed.
"""

from typing import Any


def model() -> Any:
    """Return a small classifier of vectors."""
    from tests.helpers.other_trainers import network

    return network()
