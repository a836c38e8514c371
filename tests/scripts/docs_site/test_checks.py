"""A page that names what does not exist is found, with its line and the wrong word."""

import pytest

from scripts.docs_site.blocks import blocks_of, commands_of, outside_of_home
from scripts.docs_site.checks import wrong_names

SHELL = "```sh\n{}\n```\n"
RIGHT = (
    "`shots=4`, `method=so`, `optimizer.density_ratio=5e-4`, `dataset=eurosat` and `dataset=rte`",
    "`--multirun`, `-m`, `--forecast`, `conf/method/so.yaml`, `results/runs/photos-1`",
    "`so_clip.optim.so.SO`, `accuracy_percent`, `experiment=demo`, `make test`",
    "`hydra/launcher=slurm`, `hydra.launcher.partition=NAME`, `results/tables/*.csv`",
    "the method `clip_lora`, the dataset `dtd` and the `heic` extra",
    SHELL.format("python -m so_clip experiment=demo method=so,adamw seed=1,2 -m > out.txt"),
    SHELL.format("python -m so_clip rte method=so | head -3 && make docs"),
    SHELL.format("python -m so_clip evaluate results/runs/NAME dataset=dtd split=val"),
    SHELL.format("OMP_NUM_THREADS=1 python scripts/bench_engine.py --only launches  # a table"),
    SHELL.format("python -m so_clip table $(ls -d results/meta/*)"),
    SHELL.format("pip install 'so-clip[report,heic]'"),
    "```python\nfrom so_clip import SO, load\nfrom so_clip.errors import InputError\n```\n",
    "`conf/method/mine.yaml`:\n\n```yaml\nname: mine\n```\n\n"
    + SHELL.format("python -m so_clip method=mine --config-dir conf"),
    "<!-- names: max_grad_norm -->\n`max_grad_norm`",
    "`accuracy_percent`, `predict`, `balanced`, `density_ratio`, `eurosat`, `grep`, `print`",
)
# The Markdown of a page, and the word that does not exist.
WRONG = (
    ("`shotz=4`", "shotz=4"),
    ("`optimizer.density=5e-4`", "optimizer.density=5e-4"),
    ("`--multirum`", "--multirum"),
    ("`conf/method/sso.yaml`", "conf/method/sso.yaml"),
    ("`results/tables/none_*.csv`", "results/tables/none_*.csv"),
    ("`method=so_aged`", "method=so_aged"),
    ("`dataset=eurosatt`", "dataset=eurosatt"),
    ("`backbone=vit_b99`", "backbone=vit_b99"),
    ("`adapter=loraa`", "adapter=loraa"),
    ("`optimizer=adamm`", "optimizer=adamm"),
    ("`experiment=demoo`", "experiment=demoo"),
    ("the method `clip_loraa`", "clip_loraa"),
    ("the command `tabel_runs`", "tabel_runs"),
    ("`make dokumentation`", "dokumentation"),
    ("`pip install 'so-clip[reports]'`", "so-clip[reports]"),
    ("`accuracy_in_percents`", "accuracy_in_percents"),
    ("`deliberately`, a word of comments", "deliberately"),
    ("`so_clip.optim.sso.SO`", "so_clip.optim.sso.SO"),
    (SHELL.format("python -m so_clip tabel results/runs"), "tabel"),
    (SHELL.format("python -m so_clip methode=so"), "methode=so"),
    (SHELL.format("python -m so_clip method=so,sso -m"), "method=so,sso"),
    (SHELL.format("python -m so_clip table results/runs --outt x"), "--outt"),
    (SHELL.format("cd x && python -m so_clip prepare datasets=dtd"), "datasets=dtd"),
    (SHELL.format("make tests"), "tests"),
    (SHELL.format("pip install -e '.[docss]'"), ".[docss]"),
    (SHELL.format("python scripts/bench_engines.py"), "scripts/bench_engines.py"),
    (SHELL.format("python scripts/bench_engine.py --onlyy x"), "--onlyy"),
    (SHELL.format("python -m scripts.docs_site.nothing"), "scripts.docs_site.nothing"),
    ("`SHOTS=4`", "SHOTS=4"),
    ("`optimizer.Density_Ratio=4`", "optimizer.Density_Ratio=4"),
    ("`method=SO`", "method=SO"),
    ("`--Multirun`", "--Multirun"),
    ("``shotz=3``", "shotz=3"),
    ("`optimizer.density_ration`", "optimizer.density_ration"),
    (SHELL.format("so-clip shotz=5"), "shotz=5"),
    (SHELL.format("python3 -m so_clip optimizer.density-ratio=1"), "optimizer.density-ratio=1"),
    (SHELL.format("for s in 1 2; do A=1 so-clip shotz=6 seed=$s; done"), "shotz=6"),
    (SHELL.format("(env A=1 so_clip shotz=7 seed=1)"), "shotz=7"),
    ("```python\nfrom so_clip import SSO\n```\n", "SSO"),
    ("```python\nimport so_clip\n\nso_clip.loads('x')\n```\n", "so_clip.loads"),
    ("```python\nfrom so_clip.optims import SO\n```\n", "so_clip.optims"),
    ("::: so_clip.optim.so.SSO", "so_clip.optim.so.SSO"),
)


@pytest.mark.parametrize("text", RIGHT)
def test_right_names_pass(text: str):
    assert wrong_names(text) == []


@pytest.mark.parametrize(("text", "word"), WRONG, ids=[word for _, word in WRONG])
def test_a_wrong_name_is_found_with_its_line(text: str, word: str):
    found = wrong_names(f"# Title\n\n{text}")
    assert [wrong.word for wrong in found] == [word]
    assert found[0].line == (4 + text.startswith("```python\nimport") * 2 if "```" in text else 3)
    assert word in str(found[0])


@pytest.mark.parametrize(
    "fence",
    [
        "~~~sh\n{}\n~~~",
        "````sh\n{}\n````",
        "``` sh\n{}\n```",
        "```bash\n{}\n```",
        "```sh\n{}",
        "- a\n\n\t```sh\n\t{}\n\t```",
        "- ```sh\n  {}\n  ```",
    ],
)
def test_a_block_that_would_not_be_read_is_found(fence: str):
    text = fence.format("python -m so_clip shotz=4")
    found = wrong_names(f"# T\n\n{text}\n")[0]
    assert found.line == 3 + 2 * text.startswith("- a")
    assert "write ``` alone or with one of sh" in str(found)


def test_the_nearest_name_is_given():
    (wrong,) = wrong_names("`method=clip_lorra`")
    assert "'clip_lora'" in str(wrong)


def test_a_block_has_its_kind_file_line_and_comment():
    text = "# T\n\nIn `a/b.yaml`:\n\n```yaml\nx: 1\n```\n\n"
    text += "<!-- given: model -->\n```python\nmodel\n```\n"
    yaml, python = blocks_of(text)
    assert (yaml.kind, yaml.text, yaml.file, yaml.line) == ("yaml", "x: 1\n", "a/b.yaml", 5)
    assert (python.kind, python.comment, python.line) == ("python", "given: model", 10)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("echo a >/tmp/a", "/tmp/a"),
        ("echo a 2>> '/tmp/a b'", "/tmp/a b"),
        ("cd ../a && ls", "../a"),
        ("ls | tee ~/a", "~/a"),
        ("A=/tmp/a; ls $A", "A=/tmp/a"),
        ("so_clip results_dir=/a", "results_dir=/a"),
        ("cat $(ls /a)", "/a"),
    ],
)
def test_a_place_outside_of_the_home_is_found(text: str, word: str):
    assert outside_of_home(text) == [word]
    inside = "ls $HOME/a >/dev/null 2>&1  # or /a\ncat <<'E' > b/c\n/tmp\nE\nls *.csv https://a/b"
    assert outside_of_home(inside) == []


def test_the_commands_of_a_block():
    text = "A=1 python x.py \\\n  --b > c  # d\ncat <<'E' > f\nmake nothing\nE\n"
    text += "make a && make b | sort\n"
    found = [["python", "x.py", "--b", "c"], ["cat", "f"], ["make", "a"], ["make", "b"], ["sort"]]
    assert list(commands_of(text)) == found
