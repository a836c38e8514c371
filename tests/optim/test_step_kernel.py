"""The kernel of SO's step: in Triton's interpreter, as compiled code, and on a GPU."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from so_clip.optim.step_kernel import available, launch_options
from tests.helpers.kernel_rows import Case, Gradients, Rows, extreme, normal, rule_with, tied

CASES = Path(__file__).with_name("step_kernel_cases.py")

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run_in_the_interpreter(marked: str) -> None:
    # Triton reads the variable when it is imported, so the cases need a process of their own.
    command = [sys.executable, "-m", "pytest", str(CASES), "-p", "no:cacheprovider", "-m", marked]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_kernel_agrees_with_the_torch_path() -> None:
    run_in_the_interpreter("not slow")


@pytest.mark.slow
def test_the_kernel_agrees_with_the_torch_path_and_an_oracle_in_many_cases() -> None:
    run_in_the_interpreter("slow")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs no interpreter")
def test_a_cpu_keeps_the_torch_path() -> None:
    assert not available(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("block", [128, 2048])
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
@pytest.mark.parametrize(
    "types",
    [
        {"flat": "*fp32"},
        {"flat": "*fp32", "half": "*i16", "age_RM": "*i32"},
        {"flat": "*i16", "age_RM": "*i32"},
        {"flat": "*fp16"},
    ],
)
def test_compiled_code_rounds_each_product_and_sum(
    types: dict[str, str], order: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile for an H100, without one. Only the launch needs it."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = compiled(types, block, UPDATES_FIRST=order == "update_first", DECAYS=True, MAXIMIZE=True)
    operations = set(re.findall(r"^\s+(?:@%p\d+\s+)?([a-z]+\.[a-z0-9.]*f32)\b", ptx, re.M))
    assert {"mul.rn.f32", "add.rn.f32", "sub.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= operations
    # Neither fused nor approximate, and no denormal is taken for 0.
    assert not {name for name in operations if re.search("fma|mad|approx|ftz|full", name)}

    spilled = spilled_bytes(ptx, tmp_path)
    assert spilled <= 64, f"a thread spills {spilled} bytes"


def compiled(types: dict[str, str], block: int, **constants: bool) -> str:
    """Return the PTX of the kernel for a GPU of compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from so_clip.optim.step_program import step_row

    integers = ("offset_R", "size_R", "support_RM", "index_RM", "place_RM")
    floats = ("grad_RM", "exp_avg_RM", "exp_avg_sq_RM", "scalars")
    known = dict.fromkeys(integers, "*i64") | dict.fromkeys(floats, "*fp32") | types
    known |= dict.fromkeys(("m", "last_mean", "last_scale"), "i32")
    if "age_RM" in types:
        known |= {"mean_table": "*fp32", "scale_table": "*fp32"}
    absent = {"half", "age_RM", "mean_table", "scale_table"} - known.keys()
    fixed: dict[str, Any] = {"BLOCK": block, **constants} | dict.fromkeys(absent)
    names = step_row.arg_names
    signature = {name: known.get(name, "fp32") for name in names}
    signature |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(
        fn=step_row,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in fixed.items()},
    )
    target = GPUTarget("cuda", 90, 32)
    return str(triton.compile(source, target=target, options=launch_options(block)).asm["ptx"])


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
