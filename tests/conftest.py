"""What every test gets: a home of its own, no registry but its own, and a registry to use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from registry import Registry

settings.register_profile(  # the full sweep of oracles: pytest --hypothesis-profile=full
    "full", max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's registries, and none leaves one in the working folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CKREG_REGISTRY", raising=False)


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    """Return a new registry in a folder."""
    with Registry.create(tmp_path / "reg") as registry:
        yield registry


def left_behind(registry: Registry) -> list[str]:
    """Return the files of a registry's blobs and tmp, to see that a failure left nothing."""
    root = Path(registry.location)
    return sorted(
        str(p.relative_to(root))
        for p in [*root.glob("blobs/*/*"), *root.glob("tmp/*")]
        if p.is_file()
    )
