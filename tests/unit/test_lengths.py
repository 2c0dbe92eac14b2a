"""How long a file and a function may be. Parsed, not imported: this takes no time."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("r1mega", "tools", "launchers", "slurm", "tests")
LONGEST_FILE, LONGEST_FUNCTION = 350, 80


def _python_files() -> list[Path]:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300  # the folders are where this looks for them
    return files


def test_no_file_is_longer_than_is_read_at_once():
    lengths = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8").count("\n") for f in _python_files()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_function_is_longer_than_a_page():
    too_long = {}
    for file in _python_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    too_long[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines
    assert too_long == {}
