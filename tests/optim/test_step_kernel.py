"""The kernel of SO's step: in Triton's interpreter, as compiled code, and on a GPU."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from so_clip.optim.step_kernel import available
from tests.helpers.kernel_rows import Case, Gradients, Rows, extreme, normal, rule_with, tied

CASES = Path(__file__).with_name("step_kernel_cases.py")

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run_in_the_interpreter(marked: str) -> None:
    # Triton reads the variable when it is imported, so the cases need a process of their own.
    command = [sys.executable, "-m", "pytest", str(CASES), "-p", "no:cacheprovider", "-m", marked]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_kernel_agrees_with_the_torch_path() -> None:
    run_in_the_interpreter("not slow")


@pytest.mark.slow
def test_the_kernel_agrees_with_the_torch_path_and_an_oracle_in_many_cases() -> None:
    run_in_the_interpreter("slow")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs no interpreter")
def test_a_cpu_keeps_the_torch_path() -> None:
    assert not available(torch.device("cpu"))


def test_where_a_first_try_fails_the_torch_path_stays_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from so_clip.optim import step_program  # noqa: F401  compiled for GPUs, not interpreted

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not available.__wrapped__(torch.device("cpu"))  # past the memory of earlier calls
    assert "SO steps without Triton, by more launches: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles for itself")
@pytest.mark.parametrize("size", [1, 2048])
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
@pytest.mark.parametrize(
    ("weight_dtype", "half_dtype", "has_ages"),
    [
        (torch.float32, None, False),
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.float16, False),
        (torch.bfloat16, None, True),
        (torch.float16, None, False),
    ],
)
def test_compiled_code_rounds_each_product_and_sum(
    weight_dtype: torch.dtype,
    half_dtype: torch.dtype | None,
    has_ages: bool,
    order: str,
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = rule_with(order=order, weight_decay=0.1, maximize=True)
    ptx = compiled(Case([size], rule, weight_dtype, half_dtype, has_ages), tmp_path, monkeypatch)
    operations = set(re.findall(r"^\s+(?:@%p\d+\s+)?([a-z]+\.[a-z0-9.]*f32)\b", ptx, re.M))
    assert {"mul.rn.f32", "add.rn.f32", "sub.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= operations
    # Neither fused nor approximate, and no denormal is taken for 0.
    assert not {name for name in operations if re.search("fma|mad|approx|ftz|full", name)}

    spilled = spilled_bytes(ptx, tmp_path)
    assert spilled <= 64, f"a thread spills {spilled} bytes"


def compiled(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the PTX of a step on an H100, without one: all of `step_rows` but the launch."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from so_clip.optim import step_program

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    class Program:
        """Compiles as Triton does before a launch, and keeps the code."""

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def compile_only(*args: Any, **options: Any) -> None:
                codes.append(program.warmup(*args, grid=grid, **options).asm["ptx"])

            return compile_only

    codes: list[str] = []
    program = step_program.step_row
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(step_program, "step_row", Program())
    monkeypatch.setattr(driver, "_active", Driver())
    Rows(case).take_step()
    return codes[0]


def spilled_bytes(ptx: str, folder: Path) -> int:
    """Return the bytes of registers that ptxas moves to memory, for each thread."""
    from triton import knobs

    (folder / "step.ptx").write_text(ptx)
    command = [knobs.nvidia.ptxas.path, "-v", "--fmad=false", "--gpu-name=sm_90a", "step.ptx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert found, done.stderr
    return int(found[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("has_ages", [False, True])
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
@pytest.mark.parametrize("gradients", [normal, tied, extreme])
def test_a_gpu_agrees_with_the_torch_path_bit_for_bit(
    gradients: Gradients, order: str, has_ages: bool
) -> None:
    assert available(torch.device("cuda"))
    rule = rule_with(order=order, weight_decay=0.1, maximize=has_ages)
    for weight_dtype, half_dtype in [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, None),
        (torch.float16, None),
    ]:
        case = Case(
            sizes=[1, 2, 17, 127, 255, 1000, 2048],
            rule=rule,
            weight_dtype=weight_dtype,
            half_dtype=half_dtype,
            has_ages=has_ages,
            first_step=17_990,
            device="cuda",
        )
        rows = Rows(case)
        for step in range(30):
            if step % 10 == 9:
                rows.redraw()
                rows.locate()
            rows.take_step(gradients)
            rows.assert_equal()
