"""The source keeps its shape: floors, and sizes that fit a head."""

import ast
from pathlib import Path

import pytest

import strop

ROOT = Path(strop.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
FLOORS = [
    {"errors", "types", "protocols", "ledger", "stats"},
    {"model", "tasks", "data"},
    {"sampling"},
    {"reward", "knowledge"},
    {"evals", "synth"},
    {"train", "search"},
    {"recipe"},
    {"api", "cli", "serve"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MOST_LINES, MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 3000, 400, 60


def part(path: str) -> str:
    """The package or module right under strop that a file belongs to; the package's own file is a face."""
    first = Path(path).parts[0].removesuffix(".py")
    return "api" if first == "__init__" else first


def imported(tree: ast.AST) -> set[str]:
    """The parts of strop that a module imports, wherever in it."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("strop.")}  # `import strop`: its version


def allowed(user: str, used: str) -> bool:
    beside = user == used or {FLOOR[user], FLOOR[used]} in ({0}, {7}) or (user, used) == ("tasks", "data")
    return beside or FLOOR[used] < FLOOR[user]


@pytest.mark.parametrize("path", FILES)
def test_a_module_imports_only_from_floors_below(path):
    used = imported(ast.parse(FILES[path].read_text()))
    assert {name for name in used if not allowed(part(path), name)} == set()


def test_the_rule_itself():
    assert imported(ast.parse("import strop\nimport strop.evals.x\nfrom strop import train\nimport os")) == {
        "evals", "train"
    }  # fmt: skip
    assert allowed("train", "sampling") and allowed("tasks", "data") and allowed("cli", "api")
    assert not (allowed("data", "tasks") or allowed("model", "sampling") or allowed("evals", "synth"))


@pytest.mark.parametrize("path", FILES)
def test_files_and_functions_fit(path):
    text = FILES[path].read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES_OF_A_FUNCTION} == {}


def test_the_whole_source_fits():
    lines = sum(sum(1 for line in path.read_text().splitlines() if line.strip()) for path in FILES.values())
    assert lines <= MOST_LINES
