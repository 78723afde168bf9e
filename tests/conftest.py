"""What every test gets: a home of its own, no registry but its own, and a registry to use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import buckets
import pytest
from backends import BACKENDS, CONFORMING, ON_S3, blobs_at, why_not
from hypothesis import HealthCheck, settings

from registry import Registry

if TYPE_CHECKING:
    from stores import Held
    from sweeps.s3_server import Server

settings.register_profile(  # the full sweep of oracles: pytest --hypothesis-profile=full
    "full", max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's registries, nor one above the working folder, or leaves any there."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLUMNS", "100")  # whatever terminal the tests are started on
    for name in (
        "CKREG_REGISTRY", "CKREG_BLOBS", "CKREG_CACHE", "CKREG_ON_COMMIT", "XDG_CACHE_HOME",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the conformance suite on every backend."""
    conforms = metafunc.module.__name__.rpartition(".")[2] in CONFORMING
    if "backend" not in metafunc.fixturenames or not conforms:
        return
    names = list(BACKENDS)
    if metafunc.definition.get_closest_marker("sqlite_only"):
        names = [name for name in names if name.startswith("sqlite")]
    if metafunc.module.__name__.rpartition(".")[2] not in ON_S3:
        names = [name for name in names if not name.endswith("s3")]
    metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of the backend that this test runs on."""
    name: str = getattr(request, "param", "sqlite+folder")
    why = why_not(name)
    if why is not None:
        pytest.skip(why)
    return name


@pytest.fixture
def reg(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Return a new registry."""
    if backend.endswith("s3"):
        for name, value in buckets.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
    with BACKENDS[backend](tmp_path) as registry:
        yield registry


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return the object store, with the environment that leads a client to it."""
    why = buckets.why_not()
    if why is not None:
        pytest.skip(why)
    for name, value in buckets.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return buckets.server()


@pytest.fixture
def prefix(s3: Server) -> str:
    """Return the URL of a prefix that is this test's alone."""
    return buckets.prefix()


@pytest.fixture(params=["folder", "s3"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Held:
    """Return a new store of each kind."""
    from stores import HeldBucket, HeldFolder

    if request.param == "folder":
        return HeldFolder(tmp_path / "registry")
    return HeldBucket(request.getfixturevalue("prefix"))


def left_behind(registry: Registry) -> list[str]:
    """Return the files of a registry's blobs and tmp, to see that a failure left nothing."""
    root = blobs_at(registry)
    return sorted(
        str(p.relative_to(root))
        for p in [*root.glob("blobs/*/*"), *root.glob("tmp/*")]
        if p.is_file()
    )
