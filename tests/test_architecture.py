"""What may import what, and that no module is hidden behind another thing of its name."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import longrope_jax
from experiments import lab

ROOT = Path(__file__).parents[1]

# Rooms of the package from top to bottom. A room imports only from floors below its own.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands", "lm_eval_adapter"),
    ("model", "aot", "plot"),
    ("evaluation", "runs", "search"),
    ("generate", "training", "weights"),
    ("data", "llama"),
    ("tasks", "cache"),
    ("architecture",),
    ("analysis", "attention", "linear", "sampling", "streaming"),
    ("rotary", "sharding"),
    ("errors", "folders", "hosts", "shapes"),
    ("lease",),
)
# Narrower than its floor allows.
ONLY = {"tasks": {"errors"}, "analysis": {"rotary", "errors"}, "rotary": {"errors", "shapes"}}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(*folders: str) -> dict[str, Path]:
    """Path by dotted name of every module in the folders."""
    return {module_name(path): path for f in folders for path in sorted((ROOT / f).rglob("*.py"))}


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of `known` that a file imports anywhere in it, functions and TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: None if path.name == "__init__.py" else -1]
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & known.keys()
            if inner - known.keys():  # a name of the module itself
                found.add(base)
    return (found & known.keys()) - {name}


def modules(package: ModuleType) -> Iterator[tuple[ModuleType, str, ModuleType]]:
    """(package, name of a module in it, the module), all the way down; without __main__."""
    for info in pkgutil.iter_modules(package.__path__):
        if info.name == "__main__":
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        yield package, info.name, module
        if info.ispkg:
            yield from modules(module)


def test_no_module_is_hidden_by_a_function_of_its_name():
    found = [*modules(longrope_jax), *modules(lab)]
    assert len(found) > 50  # what is looked for would be seen
    hidden = [m.__name__ for package, name, m in found if getattr(package, name) is not m]
    assert not hidden


def test_no_two_files_import_each_other():
    known = files("longrope_jax", "experiments", "benchmarks")
    arrows = {name: imported(name, path, known) for name, path in known.items()}
    assert sum(map(len, arrows.values())) > 300  # what is looked for would be seen
    assert not [(a, b) for a in arrows for b in arrows[a] if a < b and a in arrows[b]]


def test_rooms_import_downward_only():
    known = files("longrope_jax")
    floor = {room: at for at, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for name, path in known.items():
        room = name.split(".")[1] if "." in name else None
        if room is None:  # the package's own door may show any room
            continue
        assert room in floor, f"{room} stands on no floor of FLOORS"
        for other in imported(name, path, known):
            target = other.split(".")[1] if "." in other else "the package itself"
            lower = floor.get(target, -1) > floor[room] and target in ONLY.get(room, floor)
            if target != room and not lower:
                wrong.append(f"{name} imports {other}")
    assert not wrong
