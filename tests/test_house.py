"""The house rules that a machine can check: imports, sizes, and what the core needs."""

import ast
import subprocess
import sys
from pathlib import Path

from order import LONGEST

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "syncnorm").rglob("*.py"))


def test_the_layers_need_torch_alone() -> None:
    program = (
        "import sys, syncnorm; syncnorm.SyncBatchNorm, syncnorm.convert, syncnorm.Moments; "
        "print([m for m in ('lightning', 'wandb', 'datasets', 'sklearn', 'scipy', 'matplotlib', 'rich', 'tyro') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_files_and_functions_do_one_thing() -> None:
    long = [
        f"{path}: {len(path.read_text().splitlines())} lines"
        for path in FILES
        if len(path.read_text().splitlines()) > 400
    ]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path}:{node.lineno} {node.name}")
    assert not long


def test_the_files_of_tests_that_are_run_first_are_there() -> None:
    assert set(LONGEST) <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_public_functions_and_classes_are_documented() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare
