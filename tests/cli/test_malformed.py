"""Malformed command lines: exit code 2, one message in words, nothing left behind.

Each row is a command line that nothing else tests. {dir}, {text}, {pipe}, {zoo} and {choices} stand
for a folder, a text file, a named pipe, a folder of images and one of configuration files.
"""

import os
from pathlib import Path

import pytest

from tests.helpers.command import call
from tests.helpers.made_datasets import write_class_folders

LONG = "9" * 400
VALUES = f"""
shots=
shots=nan
shots=1e3
shots={LONG}
seed={LONG}
seed=''
seed=[1,2]
optimizer.lr=
optimizer.lr=null
optimizer.lr=inf
optimizer.T=1.5
optimizer.betas=[a,b]
optimizer.sampled_gradients=maybe
schedule.max_steps=1e400
schedule.lr_min=1
schedule=
augment=3
augment.scale=[nan,1]
evaluation.workers=99999
evaluation.cache_dir={{text}}
evaluation.decode_cache_gib=nan
device=cuda:x
device=
precision=null
threads=99999
checkpoint_seconds=nan
force=maybe
results_dir=''
results_dir={"a/" * 3000}
template='{{{{}}}} {{{{}}}}'
template={{dir}}
transfer={{{{}}}}
transfer=[folder:]
imbalance=nan
dataset={{{{}}}}
method={{{{}}}}
method=[so,adamw]
method.title='a|b'
adapter.roles=[1]
adapter.position=last-0
adapter.name=x adapter._target_=os.path.nope
adapter.name=x adapter._target_=collections.OrderedDict
optimizer.name=x optimizer._target_=builtins.dict
+adapter._partial_=true
~backbone
~results_dir
method=clip_lora adapter.rank=0
method=lora adapter.rank=x
backbone.architecture=[a]
backbone.checkpoint={{pipe}}
backbone.checkpoint=/dev/zero
dataset=folder data_root={{text}}
dataset=csv data_root={{zoo}} dataset.csv_file={{pipe}}
dataset=folder data_root={{zoo}} dataset.class_names=/dev/zero
dataset=folder data_root={{zoo}} dataset.split_shares=[nan,nan,nan]
"""
GRAMMAR = """
seed=${
seed=${}
seed=${nope:1}
seed=${oc.env:NOPE}
seed=${times:a,b}
shots=${method}
results_dir=${results_dir}
seed=???
backbone.checkpoint=???
seed=[1
seed={a
seed=1)
seed='1
seed==1
=1
=
++
~~seed
+seed=1
++nope.a.b=1
seed.x=1
seed@x=1
é=1
a[0]=1
"""
FLAGS = """
-m
-m seed=
-m seed=range(0)
-m seed=range(1,2,0)
-m seed=range(x)
-m seed=nope(1)
-m seed=interval(1,2)
-m seed=1,'
-m results_dir=a,b seed=1
-m hydra.sweep.dir= seed=1
-m hydra.sweeper._target_=nope seed=1
-m hydra/launcher=nope seed=1
-m hydra/launcher=joblib hydra.launcher.nope=0 seed=1
hydra=1
hydra.run.dir=x
hydra.mode=MULTIRUN
hydra.searchpath=[nope]
hydra.callbacks=null
hydra/launcher=joblib
--cfg=
--cfg job --package nope
--cfg job --package ''
--cfg job --resolve seed=${seed}
--package nope
--resolve
--info x
--config-name ''
--config-name nope
--config-dir {text}
--config-path nope
--config-path pkg://nope
--from ''
--from {dir}
--from {text}
--from {pipe}
--version seed=1
--help method=nope
--help dataset=nope
method= --help
--config-dir {choices} method=broken
--config-dir {choices} method=circle
--install-completion x
-sc query=bash
---m
-x
"""
COMMANDS = """
doctor data_root=''
doctor data_root={dir} samples=x
doctor data_root={dir} bakcbone=tiny
doctor data_root={dir} method=nope
prepare dataset=
prepare dataset=dtd data_root={dir} retries=x
draw seed=[1
forecast shots=x
status ''
table {text}
report {dir} -o ''
report {dir} --details ''
tensorboard {text}
prepare dataset=dtd data_root={dir} imagenet_dir={dir}
doctor data_root={zoo} dataset=folder shots=0
doctor data_root={zoo} dataset=folder seed=x
draw hydra.run.dir=x
forecast hydra/launcher=joblib
forecast hydra.job.chdir=true
forecast backbone.architecture=nope
"""
LINES = [line for group in (VALUES, GRAMMAR, FLAGS, COMMANDS) for line in group.split("\n") if line]
# What is refused before Hydra composes anything.
QUICK = [line for line in FLAGS.split("\n") if line and not line.startswith("-m seed")]
NUL_AND_SURROGATES = ("seed=\0", "\0=1", "results_dir=a\0b", "results_dir=\udc80", "a=\udc80")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("places")
    write_class_folders(root / "zoo", ("ant", "bee"), images=6)
    (root / "dir").mkdir()
    (root / "text").write_text("x")
    os.mkfifo(root / "pipe")
    methods = root / "choices" / "method"
    methods.mkdir(parents=True)
    (methods / "broken.yaml").write_text("lr: [1\n")
    (methods / "circle.yaml").write_text("# @package _global_\ndefaults: [circle]\n")
    return {name: root / name for name in ("dir", "text", "pipe", "zoo", "choices")}


@pytest.mark.parametrize(
    "line",
    [
        line if line in QUICK else pytest.param(line, marks=pytest.mark.slow)
        for line in (*LINES, *NUL_AND_SURROGATES)
    ],
    ids=lambda line: ascii(line)[:60],
)
def test_it_is_refused_with_one_message_and_leaves_nothing(line, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled = line
    for name, place in places.items():
        filled = filled.replace(f"{{{name}}}", str(place))
    filled = filled.replace("{{", "{").replace("}}", "}")
    before = {path: sorted(path.rglob("*")) for path in places.values()}
    done = call(*("" if word == "''" else word for word in filled.split(" ")))
    assert done.code == 2, done
    assert len(done.messages) == 1, done.err
    assert "may be a bug" not in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not [*tmp_path.iterdir()]
    assert before == {path: sorted(path.rglob("*")) for path in places.values()}
