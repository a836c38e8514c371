"""Mistakes in a method are refused before torch is imported."""

import sys

import pytest

from so_clip.config.compose import compose
from so_clip.config.early_checks import check_packages
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from tests.helpers.command import call, python


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rank=0", "adapter.rank=0: must be 1 or more"),
        ("rank=2.5", "adapter.rank=2.5: must be a whole number"),
        ("dropout=1", r"adapter.dropout=1: must be in \[0, 1\)"),
        ("interpolation=nan", "adapter.interpolation=nan: must be a finite number"),
        ("encoder=vison", "adapter.encoder=vison.* Did you mean 'vision'"),
        ("seed=-1", "adapter.seed=-1: must be 0 or more"),
        ("alpha=x", "adapter.alpha=x: must be a finite number"),
    ],
)
def test_an_adapter_option_out_of_range_is_refused_with_the_configuration(option, message):
    with pytest.raises(InputError, match=message):
        from_config(compose(["method=clip_lora", f"adapter.{option}"]))


@pytest.mark.slow
def test_a_bad_rank_imports_no_torch():
    code = (
        "import sys\n"
        "from so_clip.__main__ import main\n"
        "sys.argv[1:] = ['method=clip_lora', 'adapter.rank=0']\n"
        "try:\n    main()\n"
        "except SystemExit as error:\n    print(error.code, 'torch' in sys.modules)"
    )
    assert python(code).split() == ["2", "False"]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("method", "package"),
    [("lora", "peft"), ("adalora", "peft"), ("relora", "peft"), ("galore", "pytorch_optimizer")],
)
def test_a_method_without_its_package_names_what_installs_it(method, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    chosen = from_config(compose([f"method={method}"])).method
    with pytest.raises(
        InputError, match=rf"method={method} needs .*pip install 'so-clip\[methods\]'"
    ):
        check_packages(chosen)
    done = call("forecast", f"method={method}")
    assert (done.code, len(done.messages)) == (2, 1)
