"""logits.safetensors: what is written is read back, and a damaged file is refused."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from so_clip.errors import InputError
from so_clip.results.logits_file import (
    AUTO_BYTES,
    Keeps,
    KeptLogits,
    ModelLogits,
    Validation,
    logits_bytes,
    logits_file,
    logits_kept,
    read_logits,
)

N, V, K = 30, 8, 4


def _logits(generator: np.random.Generator, rows: int) -> Any:
    logits_NK = generator.normal(0, 3, (rows, K)).astype(np.float16)
    return logits_NK - logits_NK.max(axis=1, keepdims=True)


def _model(generator: np.random.Generator, label_N: Any) -> ModelLogits:
    logits_NK = _logits(generator, N)
    rank_N = (logits_NK > np.take_along_axis(logits_NK, label_N[:, None], 1)).sum(axis=1)
    return ModelLogits(logits_NK, generator.random(N).astype(np.float32), rank_N)


def made(seed: int = 0) -> KeptLogits:
    generator = np.random.default_rng(seed)
    label_N, label_V = generator.integers(0, K, N), generator.integers(0, K, V)
    validation = Validation(label_V, {name: _logits(generator, V) for name in ("zero_shot_", "")})
    return KeptLogits(
        label_N,
        {"zero_shot_": _model(generator, label_N), "": _model(generator, label_N)},
        {"zero_shot_": None, "": 1.5},
        V,
        "0" * 64,
        "f" * 64,
        validation,
    )


def test_what_is_written_is_read_back(tmp_path):
    kept = made()
    path = tmp_path / logits_file()
    path.write_bytes(kept.to_bytes())
    assert abs(path.stat().st_size - logits_bytes(2, N, V, K)) < 400
    found = read_logits(path)
    assert (found.label_N == kept.label_N).all()
    assert (found.temperatures, found.calibrated_on) == (kept.temperatures, V)
    assert (found.images_sha256, found.run_fingerprint) == (kept.images_sha256, "f" * 64)
    assert (found.classes, [*found.models]) == (K, ["zero_shot_", ""])
    assert found.validation is not None
    assert kept.validation is not None
    assert (found.validation.label_V == kept.validation.label_V).all()
    for name, model in kept.models.items():
        for part in ("logits_NK", "confidence_N", "rank_N"):
            assert (getattr(found.models[name], part) == getattr(model, part)).all()
        assert (found.validation.logits[name] == kept.validation.logits[name]).all()


def test_another_test_set_has_no_validation_images(tmp_path):
    path = tmp_path / logits_file("dtd")
    assert path.name == "logits_dtd.safetensors"
    path.write_bytes(replace(made(), validation=None).to_bytes())
    assert read_logits(path).validation is None


def _changed(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    data = made().to_bytes()
    arrays = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    change(arrays, header)
    return save(arrays, header)


def _set(name: str, place: Any, value: Any) -> bytes:
    return _changed(lambda arrays, _: arrays[name].__setitem__(place, value))


def _put(name: str, array: Any) -> bytes:
    return _changed(lambda arrays, _: arrays.__setitem__(name, array))


def _about(name: str, text: str) -> bytes:
    return _changed(lambda _, header: header.__setitem__(name, text))


def _header(**shape: Any) -> bytes:
    text = json.dumps({"label": {"dtype": "I32", "shape": [2**40], "data_offsets": [0, 8]} | shape})
    return struct.pack("<Q", len(text)) + text.encode() + b"\0" * 8


# (content, a part of the reason)
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "cannot be read"),
    "truncated": (lambda: made().to_bytes()[:-5], "cannot be read"),
    "a pickle": (lambda: b"\x80\x04\x95" + b"\0" * 90, "cannot be read"),
    "a header of 2^60 bytes": (lambda: struct.pack("<Q", 2**60) + b"{}", "cannot be read"),
    "a shape of 2^40": (_header, "cannot be read"),
    "an offset beyond the end": (lambda: _header(data_offsets=[0, 2**50]), "cannot be read"),
    "another format": (lambda: _about("format", '"other"'), "its format is not so_clip.logits"),
    "a later version": (lambda: _about("format_version", "2"), "its format version is 2, not 1"),
    "a temperature of 0": (lambda: _about("temperature", "0.0"), "temperature is 0.0"),
    "a temperature that is NaN": (lambda: _about("temperature", "NaN"), "temperature is nan"),
    "a negative number of images": (lambda: _about("calibrated_on", "-1"), "calibrated_on is -1"),
    "NaN": (lambda: _set("logits", (3, 1), np.nan), "logits has numbers that are not finite"),
    "infinity": (lambda: _set("logits", (3, 1), -np.inf), "numbers that are not finite"),
    "a logit above 0": (lambda: _set("logits", (3, 1), 1), "without a single largest value of 0"),
    "two largest logits": (lambda: _set("logits", 3, 0), "without a single largest value of 0"),
    "a label of no class": (lambda: _set("label", 2, K), f"not one of the {K} classes"),
    "a negative label": (lambda: _set("label", 2, -1), f"not one of the {K} classes"),
    "a rank of no class": (lambda: _set("rank", 2, K), f"no ranks of {K} classes"),
    "ranks of other logits": (lambda: _set("rank", slice(None), 1), "does not agree"),
    "a confidence above 1": (lambda: _set("confidence", 0, 1.5), "not between 0 and 1"),
    "validation images that are NaN": (
        lambda: _set("validation_logits", 0, np.nan),
        "validation_logits has numbers that are not finite",
    ),
    "float64": (lambda: _put("logits", np.zeros((N, K))), "logits has type float64"),
    "no labels": (lambda: _changed(lambda arrays, _: arrays.pop("label")), "it has no label"),
    "no logits": (
        lambda: _changed(lambda arrays, _: [arrays.pop(n) for n in ("logits", "zero_shot_logits")]),
        "it has no logits",
    ),
    "fewer rows": (
        lambda: _put("logits", made().models[""].logits_NK[1:]),
        f"logits has shape [{N - 1}, {K}] for {N} labels",
    ),
    "models with other classes": (
        lambda: _changed(
            lambda arrays, _: arrays.update(
                {"logits": np.eye(N, 2, dtype=np.float16) - 1, "label": np.zeros(N, np.int32)}
            )
        ),
        "",
    ),
    "validation images with other classes": (
        lambda: _put("validation_logits", -np.eye(V, 2, dtype=np.float16)),
        "",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name, tmp_path):
    path = tmp_path / logits_file()
    content, reason = DAMAGED[name]
    path.write_bytes(content())
    with pytest.raises(InputError) as refused:
        read_logits(path)
    message = str(refused.value)
    assert message.startswith(f"{path} cannot be read: ")
    assert reason in message
    assert message.endswith(f"--from {tmp_path} evaluation.keep_logits=true force=true")


def test_a_missing_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(
        InputError, match=r"this run has no logits\.safetensors\. Repeat it: python"
    ):
        read_logits(tmp_path / logits_file())


def test_auto_keeps_what_fits_into_32_mib():
    def both(images: int, classes: int) -> Keeps:
        return logits_kept("auto", images, 0, classes, adapts=True)

    assert both(8100, 10) == (True, True)
    assert both(19_850, 397) == (True, True)  # SUN397
    assert both(50_000, 200) == (False, True)
    assert both(50_000, 1000) == (False, False)
    assert logits_kept("auto", 50_000, 0, 200, adapts=False) == (True, False)
    assert logits_kept("auto", 50_000, 5_000, 200, adapts=True) == (False, True)
    assert logits_bytes(1, 50_000, 0, 200) <= AUTO_BYTES < logits_bytes(2, 50_000, 0, 200)


def test_true_keeps_all_and_false_keeps_nothing():
    assert logits_kept(True, 50_000, 4_000, 1000, adapts=True) == (True, True)
    assert logits_kept(True, 10, 0, 1000, adapts=False) == (True, False)
    assert logits_kept(False, 10, 4, 2, adapts=True) == (False, False)
    with pytest.raises(
        InputError, match=r"the logits of 50000 images and 30000 classes take 5\.6 GiB"
    ):
        logits_kept(True, 50_000, 0, 30_000, adapts=True)
