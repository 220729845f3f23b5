"""The architecture, checked by walking the imports: layers, special rules, sizes, names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "speculators"

# From left to right; a module imports from its own layer and from those before it.
LAYERS = (
    {"console", "errors"},
    {"config"},
    {"attention", "data", "hidden_states", "modules", "verifier"},
    {"algorithms"},
    {"conversion", "evaluation", "training"},
    {"doctor", "launch", "plan", "sweep"},
    {"cli"},
    {"api"},
    {"testing"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Who may import a third-party package: dotted prefixes below `speculators`.
ALLOWED = {
    "hydra": ("cli", "config"),
    "omegaconf": ("config",),
    "transformers": ("conversion", "data", "modules", "verifier"),
    "wandb": ("training.trackers",),
    "tensorboard": ("training.trackers",),
    "trackio": ("training.trackers",),
    "mlflow": ("training.trackers",),
    "aiohttp": ("hidden_states.online", "testing"),
    "vllm": (),
}
TORCH_FREE = ("errors", "config", "cli", "data.turns", "launch.provenance", "sweep.records")
IMPORTED_ON_USE = ("wandb", "tensorboard", "torch.utils.tensorboard", "trackio", "mlflow")

MAX_LINES = 450
MAX_FUNCTION_LINES = 80
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by name below `speculators` (the package itself: empty)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names imported anywhere below `node`; `from a import b` gives `a.b`."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def executed(node: ast.Module) -> Iterator[str]:
    """What is imported when the code runs: everything but the blocks for type checkers."""
    blocks = [
        child
        for child in ast.walk(node)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
    ]
    for_types = [name for block in blocks for name in imports(block)]
    for name in imports(node):
        if name in for_types:
            for_types.remove(name)
        else:
            yield name


def own_imports(module: str, *, when_run: bool = False) -> set[str]:
    """Modules of this package that `module` imports."""
    found = set()
    node = tree(modules()[module])
    for name in executed(node) if when_run else imports(node):
        if name.startswith("speculators."):
            target = name.removeprefix("speculators.")
            while target and target not in modules():
                target = target.rpartition(".")[0]
            found.add(target)
    return found - {""}


def below(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def layer(module: str) -> int:
    return RANK[module.partition(".")[0]]


def ranked() -> list[str]:
    return [module for module in modules() if module and module != "__main__"]


def python_files() -> list[Path]:
    places = [PACKAGE, ROOT / "tests", ROOT / "benchmarks"]
    return [ROOT / "train.py", *(path for place in places for path in sorted(place.rglob("*.py")))]


def test_every_module_belongs_to_a_layer() -> None:
    assert {module.partition(".")[0] for module in ranked()} <= RANK.keys()


def test_arrows_point_to_the_left() -> None:
    wrong = [
        f"{module} -> {target}"
        for module in ranked()
        for target in sorted(own_imports(module))
        if layer(target) > layer(module)
    ]
    assert wrong == []


def test_the_package_itself_imports_nothing_before_it_is_used() -> None:
    top = tree(modules()[""]).body
    loaded = [node for node in top if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name.partition(".")[0] for node in loaded for name in imports(node)}
    assert names == {"typing"}


@pytest.mark.parametrize("package", ALLOWED)
def test_third_party_packages_stay_where_they_belong(package: str) -> None:
    users = {
        module
        for module, path in modules().items()
        if any(name.partition(".")[0] == package for name in imports(tree(path)))
    }
    assert {module for module in users if not below(module, ALLOWED[package])} == set()


def test_configuration_and_command_line_are_free_of_torch() -> None:
    schemas = [m for m in modules() if Path(m.replace(".", "/")).match("algorithms/*/config")]
    free = [module for module in modules() if below(module, TORCH_FREE)] + schemas
    heavy = {"torch", "transformers", "datasets", "jaxtyping", "numpy", "wandb", "aiohttp"}
    for module in free:
        used = {name.partition(".")[0] for name in imports(tree(modules()[module]))}
        assert not used & heavy, module


@pytest.mark.parametrize("package", IMPORTED_ON_USE)
def test_trackers_are_imported_on_use(package: str) -> None:
    for module, path in modules().items():
        top = [node for node in tree(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {name for node in top for name in imports(node)}
        assert not [name for name in names if below(name, (package,))], module


def test_training_names_no_algorithm() -> None:
    algorithms = [path.name for path in (PACKAGE / "algorithms").iterdir() if path.is_dir()]
    named = tuple(f"algorithms.{name}" for name in algorithms)
    for module in modules():
        if below(module, ("training", "evaluation", "conversion", "launch")):
            wrong = {target for target in own_imports(module) if below(target, named)}
            assert not wrong, module


def code_words(node: ast.Module) -> Iterator[str]:
    """Names and texts of a module, docstrings left out."""
    docs = {
        id(body[0].value)
        for child in ast.walk(node)
        if (body := getattr(child, "body", None))
        and isinstance(body, list)
        and isinstance(body[0], ast.Expr)
    }
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            if id(child) not in docs:
                yield child.value
        elif isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr
        elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield child.name


def test_no_code_outside_the_algorithms_names_one() -> None:
    """A new algorithm is a folder and a YAML file; nothing else may have to learn its name."""
    names = [path.name for path in (PACKAGE / "algorithms").iterdir() if path.is_dir()]
    names = [name for name in names if not name.startswith("_")]
    assert "dflash" in names
    for module, path in modules().items():
        if not below(module, ("algorithms",)):
            words = [word.lower() for word in code_words(tree(path))]
            assert not [word for word in words if any(name in word for name in names)], module


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            # Among algorithms not even a type points back.
            when_run = not below(module, ("algorithms",))
            for target in sorted(own_imports(module, when_run=when_run)):
                visit(target, (*path, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def test_names_say_something() -> None:
    assert [path for path in python_files() if path.stem in EMPTY_NAMES] == []
    assert [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name in EMPTY_NAMES] == []


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {path: count for path, count in lengths.items() if count > MAX_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in python_files()
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []
