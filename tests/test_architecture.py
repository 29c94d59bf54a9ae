"""The house as reference/style.md 4.3 draws it, read from the source: floors, borders and budgets."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxdq"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
# From the ground up. Imports point to a lower floor; on one floor a part may lean on those written before it.
FLOORS = (
    ("_version", "_common", "grid"),  # what knows nothing of networks
    ("ops", "observers", "diffusion", "metrics"),  # integers, ranges, schedules and figures of arrays
    ("linen",),  # the one seam with Flax: a network's layers as sites
    ("sampling", "checkpoint", "models"),  # denoisers: run, kept and brought in
    ("evaluation", "calibration"),  # how well one draws, and what makes it draw well
    ("recipes",),  # compositions
    ("cost", "app"),  # what they cost on a chip, and a person's way to them
    ("__init__",),
)
PLACE_OF = {part: (floor, place) for floor, parts in enumerate(FLOORS) for place, part in enumerate(parts)}
BORDERS = {
    "flax": ("linen", "models", "cost", "checkpoint"),  # checkpoint asks for its version only
    "optax": ("calibration",),
    "orbax": ("checkpoint",),
    "etils": ("_common",),
    "safetensors": ("models",),
    "typer": ("app",),
    "matplotlib": ("app",),
    "jinja2": ("app",),
    "PIL": ("app",),
    "torch": (),
    "pickle": (),
    "dill": (),
    "cloudpickle": (),
}


def part_of(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[str]:
    """Dotted names of all imports, those inside functions included."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


TREES = {name: ast.parse(path.read_text(), name) for name, path in FILES.items()}
every_module = pytest.mark.parametrize("name", FILES)


def test_every_module_has_a_floor():
    assert {part_of(name) for name in FILES} <= set(PLACE_OF)


@every_module
def test_imports_point_down(name):
    part, upward = part_of(name), []
    for imported in imports_of(TREES[name]):
        if imported.startswith("jaxdq."):
            other = imported.split(".")[1]
            if other != part and PLACE_OF[other] >= PLACE_OF[part]:
                upward.append(imported)
    assert not upward


@every_module
def test_recipes_and_observers_do_not_know_their_siblings(name):
    part, shared = part_of(name), ("_base", "_rules", "_histogram", "_minmax", "_ranges", "_budget", "_weights")
    if part in ("recipes", "observers") and not name.endswith("__init__.py"):
        inside = [
            imported.split(".")[2] for imported in imports_of(TREES[name]) if imported.startswith(f"jaxdq.{part}.")
        ]
        assert set(inside) <= set(shared)


@every_module
def test_calibrators_do_not_know_one_another(name):
    """A calibrator's file imports the roles and the tools, and so do the tools."""
    inside = [part for part in imports_of(TREES[name]) if part.startswith("jaxdq.calibration.")]
    if name.startswith("calibration/") and not name.endswith("__init__.py"):
        assert {part.split(".")[2] for part in inside} <= {"_base", "tools"}


@every_module
def test_foreign_libraries_stay_at_their_borders(name):
    roots = {imported.split(".")[0] for imported in imports_of(TREES[name])}
    assert not [root for root in roots if root in BORDERS and part_of(name) not in BORDERS[root]]


def test_diffusers_and_transformers_have_at_most_one_door():
    doors = {
        name
        for name, tree in TREES.items()
        for imported in imports_of(tree)
        if imported.split(".")[0] in ("diffusers", "transformers")
    }
    assert len(doors) <= 1


@every_module
def test_nothing_is_printed(name):
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert "print" not in {call.func.id for call in calls if isinstance(call.func, ast.Name)}


@every_module
def test_budgets(name):
    assert len(FILES[name].read_text().splitlines()) <= 350
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    # A function's length is its code's: a docstring may be as long as it must.
    lengths = {function.name: length_of(function) for function in functions}
    assert not {name: length for name, length in lengths.items() if length > 60}


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring
