"""The layers: who may import whom, and which foreign package has which home."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "registry"

LAYERS = (
    "errors values",
    "signature topology urls",
    "records",
    "pending",
    "refs where keys containers blobs surroundings location mounts formatting hooks",
    "locks retention",
    "planning drafting diffing comparing",
    "cards carrying filenames",
    "walking",
    "sightings",
    "tensors",
    "tables sqlite postgres",
    "schema dialects",
    "server",
    "catalog",
    "places",
    "commits opening",
    "collecting copying pruning verifying",
    "repairing",
    "sharded",
    "loads saves diffs",
    "runs pulls exports",
    "incoming",
    "pushes",
    "importing",
    "tracking",
    "handle",
    "asking",
    "giving",
    "marking",
    "keeping",
    "registry",
    "integrations",
    "terminal",
    "plotting",
    "pages",
    "output",
    "demo web",
    "commands",
    "cli",
    "reference __main__",
)
"""A module imports only from lines above its own. (DESIGN.md draws tensors below the registry; that
nothing of the catalog or the stores is known there is stricter, and so it stands above them.)"""

UPWARD = {
    ("runs", "registry", "types"),  # a Run holds the Registry that made it
    ("saves", "runs", "types"),  # a Run is among the words of a save
    ("demo", "cli", "body"),  # the demo runs the commands that a user types
}
"""The exceptions, each with the only way in which it may be imported."""

DATABASES = ("tables", "sqlite", "postgres", "dialects", "schema", "server", "catalog")

HOMES: dict[str, dict[str, set[str]]] = {
    "torch": {"tensors": {"top", "body"}, "demo": {"body"}},
    "numpy": {"tensors": {"body"}},
    "sqlalchemy": {m: {"top", "body"} for m in DATABASES},
    "psycopg": {"postgres": {"body"}},
    "alembic": {"schema": {"body"}},
    "click": {m: {"top", "body"} for m in ("cli", "commands", "output", "reference")},
    "blake3": {"values": {"body"}, "blobs": {"top", "body"}, "demo": {"body"}},
    "rich": {"terminal": {"body"}},
    "plotille": {"plotting": {"body"}},
    "obstore": {"blobs": {"body"}},
    "sklearn": {"demo": {"body"}},
    "mlflow": {"tracking": {"body"}},
    **{name: {"web": {"top", "body"}} for name in ("starlette", "jinja2", "uvicorn")},
    "lightning": {"integrations": {"top"}},
    "pytorch_lightning": {"integrations": {"top"}},
    "transformers": {"integrations": {"top"}},
    "accelerate": {"integrations": {"top"}},
}
"""Each foreign package: the modules that may import it, and how. For types alone, any may."""

How = Literal["top", "body", "types"]


@dataclass(frozen=True)
class Import:
    """One import: `target` is a dotted name; `how`: at the top, in a function's body, for types."""

    file: str
    line: int
    module: str
    target: str
    how: How

    @property
    def ours(self) -> str | None:
        """The first part of the target inside the package, or None for a foreign one."""
        parts = self.target.split(".")
        return None if parts[0] != "registry" else (parts[1] if len(parts) > 1 else "__init__")

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.module} imports {self.target} ({self.how})"


def _is_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _walk(node: ast.AST, how: How) -> list[tuple[ast.Import | ast.ImportFrom, How]]:
    found: list[tuple[ast.Import | ast.ImportFrom, How]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append((child, how))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += _walk(child, "body")
        elif _is_types(child):
            assert isinstance(child, ast.If)
            for statement in child.body:
                found += _walk(ast.Module([statement], []), "types")
            for statement in child.orelse:
                found += _walk(ast.Module([statement], []), how)
        else:
            found += _walk(child, how)
    return found


def _is_module(dotted: list[str]) -> bool:
    path = ROOT.joinpath(*dotted)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _targets(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    base = [*base, *(node.module.split(".") if node.module else [])]
    return [
        ".".join([*base, alias.name] if _is_module([*base, alias.name]) else base)
        for alias in node.names
    ]


def _imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        module = inside.parts[0].removesuffix(".py")
        package = ["registry", *inside.parent.parts]
        for node, how in _walk(ast.parse(path.read_text(encoding="utf-8")), "top"):
            found += [
                Import(f"registry/{inside.as_posix()}", node.lineno, module, target, how)
                for target in _targets(node, package)
            ]
    return found


IMPORTS = _imports()
RANKS = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}


def test_every_module_has_its_layer():
    there = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py"}
    there |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert there - {"__init__"} == set(RANKS)


def test_a_module_imports_only_from_layers_above_it():
    wrong = [
        str(i)
        for i in IMPORTS
        if i.ours not in (None, "__init__", i.module)
        and i.module != "__init__"
        and RANKS.get(str(i.ours), 0) >= RANKS.get(i.module, 0)
        and (i.module, i.ours, i.how) not in UPWARD
    ]
    assert wrong == []


def test_the_exceptions_are_still_needed():
    assert {(i.module, i.ours, i.how) for i in IMPORTS} >= UPWARD


def test_importing_the_package_imports_nothing_of_it():
    assert [str(i) for i in IMPORTS if i.module == "__init__" and i.ours and i.how == "top"] == []


def test_tensors_is_imported_inside_function_bodies_only():
    outside = [i for i in IMPORTS if i.ours == "tensors" and i.module != "tensors"]
    assert [str(i) for i in outside if i.how == "top"] == []
    assert any(i.how == "body" for i in outside)


def test_imports_inside_the_package_are_relative():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] == "registry"], path


@pytest.mark.parametrize("foreign", HOMES)
def test_a_foreign_package_is_imported_only_at_home(foreign):
    wrong = [
        str(i)
        for i in IMPORTS
        if i.target.split(".")[0] == foreign
        and i.how != "types"
        and i.how not in HOMES[foreign].get(i.module, ())
    ]
    assert wrong == []


def test_no_other_foreign_package_is_imported():
    foreign = {i.target.split(".")[0] for i in IMPORTS if i.ours is None}
    assert foreign - set(sys.stdlib_module_names) <= set(HOMES)


def test_no_orm_is_imported_anywhere():
    assert [str(i) for i in IMPORTS if i.target.startswith("sqlalchemy.orm")] == []


def test_migrations_import_only_alembic_and_sqlalchemy():
    revisions = sorted((ROOT / "migrations" / "versions").glob("*.py"))
    assert revisions
    for path in revisions:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, _ in _walk(tree, "top"):
            for target in _targets(node, ["migrations", "versions"]):
                first = target.split(".")[0]
                assert first in {"alembic", "sqlalchemy", *sys.stdlib_module_names}, path


def test_no_file_is_a_drawer_for_odds_and_ends():
    drawers = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
    assert [p for p in PACKAGE.rglob("*.py") if p.stem in drawers] == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import registry", {"torch", "alembic", "numpy", "sqlalchemy", "click"}),
        (
            "import registry.cli, registry.web",
            {"torch", "alembic", "numpy", "sqlalchemy", "starlette", "jinja2", "uvicorn"},
        ),
        ("from registry import Registry", {"torch", "alembic", "numpy", "click"}),
        ("import registry.refs, registry.where", {"torch", "alembic", "numpy", "sqlalchemy"}),
    ],
)
def test_what_is_imported_at_run_time_is_what_is_needed(statement, absent):
    code = f"import sys; {statement}; print(*({absent!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
