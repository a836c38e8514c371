"""Runs the Python blocks of one page in one scope: requests come as lines of JSON, and so answers.

Objects that a page is given come from tests/helpers/page_givens.py.
"""

import ast
import importlib
import json
import os
import sys
import traceback
from typing import Any

GIVENS = "tests.helpers.page_givens"
_STEPS = 2


def main() -> None:
    """Answer each request with the error of its block, or with an empty text."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    scope: dict[str, Any] = {"__name__": "__main__"}
    for line in requests:
        request = json.loads(line)
        output = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
        os.chdir(request["folder"])
        error = _error_of(request, scope)
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps(error) + "\n")
        answers.flush()


def _error_of(request: dict[str, Any], scope: dict[str, Any]) -> str:
    try:
        scope |= _given(request["given"])
        tree = ast.parse(request["code"], request["name"])
        ast.increment_lineno(tree, request["line"])
        if request["small"]:
            tree = ast.fix_missing_locations(_Small().visit(tree))
        exec(compile(tree, request["name"], "exec"), scope)
    except BaseException:  # also SystemExit: a block of a page does not end Python
        return traceback.format_exc()
    return ""


def _given(words: list[str]) -> dict[str, Any]:
    """Return the objects for words such as `model` or `model=small_bert`, by their names."""
    found = {}
    for word in words:
        name, _, maker = word.partition("=")
        module = importlib.import_module(GIVENS)
        if not hasattr(module, maker or name):
            raise NameError(f"given: {word}: {GIVENS} has no function {maker or name}")
        found[name] = getattr(module, maker or name)()
    return found


class _Small(ast.NodeTransformer):
    """Takes the embedded backbone for each published one, and few steps where a call has none."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        from so_clip.config.compose import choices

        if node.value in [path.stem for path in choices("backbone")]:
            return ast.copy_location(ast.Constant("tiny"), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        if called == "adapt" and not given & {"schedule", None}:
            schedule = ast.Dict([ast.Constant("max_steps")], [ast.Constant(_STEPS)])
            node.keywords.append(ast.keyword("schedule", schedule))
        return node


if __name__ == "__main__":
    main()
