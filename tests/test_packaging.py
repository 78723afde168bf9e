"""The package as others get it: a wheel that makes and migrates registries far from any checkout,
and light imports.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from registry import Registry

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    return out


def test_the_wheel_holds_the_package_and_the_migrations_and_nothing_else(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert "registry/migrations/env.py" in names
    assert "registry/py.typed" in names
    pages = [p for p in (ROOT / "registry/web").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {p.relative_to(ROOT).as_posix() for p in pages} <= set(names)
    revisions = [n for n in names if n.startswith("registry/migrations/versions/")]
    assert len(revisions) == len(list((ROOT / "migrations/versions").glob("*.py")))
    assert {n.split("/")[0] for n in names} <= {
        "registry",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }


def test_the_sdist_holds_what_a_checkout_does(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    for needed in ("README.md", "LICENSE", "alembic.ini", "tests/conftest.py", "migrations/env.py"):
        assert any(n.endswith("/" + needed) for n in names), needed


def test_an_installed_wheel_makes_and_uses_a_registry_from_another_folder(
    built: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(site)
    weights = tmp_path / "w.pt"
    torch.save({"model": "net", "state_dict": {"w": torch.zeros(2)}, "acc": 0.5}, weights)
    code = (
        "import sys, registry, registry.schema; from registry import Registry\n"
        f"assert registry.__file__.startswith({str(site)!r}), registry.__file__\n"
        "reg = Registry.create('reg'); print(reg.push(sys.argv[1]).ref, reg.best('net').acc)"
    )
    # -I and a path of its own: neither the checkout nor an editable install of it is in reach
    paths = [str(site), sysconfig.get_path("purelib")]
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {paths!r}\n{code}",
            str(weights),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["net@v1", "0.5"], done.stderr


def imported(*words: str, registry: str) -> set[str]:
    """Return the top-level packages that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "registry", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "CKREG_REGISTRY": registry, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {m.split(".")[0] for m in re.findall(r"\|\s*([\w.]+)$", done.stderr, re.M)}


@pytest.mark.parametrize(
    "command",
    [
        "list", "models", "best net", "show net", "plan net --device cpu", "info", "tag net good",
        "pull net -o {tmp}/out.pt", "push {tmp}/w.pt", "record net loss=0.5",
        "rm net@v2 --yes --force",
        "import {tmp} --model net",
        "verify", "verify --repair --yes", "gc --yes",
        "prune net --keep-last 1 --dry-run", "prune net --keep-last 1 --yes",
    ],
)  # fmt: skip
def test_a_command_that_needs_no_torch_imports_neither_torch_nor_alembic(
    reg: Registry, tmp_path: Path, command: str
) -> None:
    torch.save({"model": "net", "state_dict": {"w": torch.zeros(2)}, "acc": 0.5}, tmp_path / "w.pt")
    reg.push(tmp_path / "w.pt")
    reg.push(tmp_path / "w.pt", epoch=1)
    words = command.format(tmp=tmp_path).split()

    found = imported(*words, registry=reg.location)

    assert {"sqlalchemy", "click", "registry"} <= found
    assert not {"torch", "alembic", "numpy", "mako"} & found


@pytest.mark.parametrize("word", ["--help", "--version", "list --help"])
def test_help_and_version_do_not_even_import_sqlalchemy(reg: Registry, word: str) -> None:
    found = imported(*word.split(), registry=reg.location)
    assert "click" in found
    assert not {"torch", "alembic", "sqlalchemy", "blake3"} & found


def test_importing_the_package_imports_no_torch() -> None:
    code = "import registry, sys; registry.Registry; print({'torch', 'alembic'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


def test_the_public_names_are_these() -> None:
    import registry

    assert sorted(registry.__all__) == sorted([
        "Registry", "Run", "Checkpoint", "Copied", "Diff", "File", "Finding", "GcPlan", "Git",
        "ImportedFile", "ImportResult", "LoadPlan", "LoadResult", "Model", "PendingSave",
        "Policy", "Aliased", "Best", "Every", "Last", "Tagged", "Younger", "PrunePlan", "Verdict",
        "Rebuilt", "Repaired", "Verification", "Provenance", "RunRecord", "RunRef", "Device",
        "KeyStyle", "Signature", "TensorSpec",
        "Topology", "CkregError", "CkregWarning", "AmbiguousError", "BusyError", "ConflictError",
        "ContainerError", "DamagedError", "NoSpaceError", "NotFoundError", "NotWritableError",
        "RefusedLoadError", "RemoteError", "SchemaVersionError", "UntrustedError",
    ])  # fmt: skip
    assert all(getattr(registry, name) is not None for name in registry.__all__)
