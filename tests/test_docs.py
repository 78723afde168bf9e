"""The pages do what they say: their blocks run, their links lead somewhere, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import blocks
import buckets
import clusters
import pytest

from registry import Registry

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SERVED = {"move-a-lab.md"}
"""The pages that speak of servers; what they write for a database and a bucket is one of ours."""

NEEDED = {
    "migrate-from-mlflow.md": ("mlflow",),
    "training-loops.md": ("sklearn", "lightning", "transformers", "accelerate"),
}
"""The libraries that a page's blocks import, beyond those that every test has."""

NOT_RUN: dict[str, int] = {}
"""How many blocks of a page are kept from running, each with its reason above it."""


def of(*pages: Path) -> list[object]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


@pytest.mark.parametrize("page", of(*PAGES))
def test_a_page_runs_as_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in NEEDED.get(page.name, ()):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the commands that a shell runs
    place = tmp_path.with_name(f"{tmp_path.name}-bin")
    place.mkdir()
    stands_for: dict[str, str] = {}
    if page.name in SERVED:
        why = clusters.why_not() or buckets.why_not()
        if why is not None:
            pytest.skip(why)
        server = clusters.cluster()
        stands_for = {
            "postgresql+psycopg://ckreg@db.lab/ckreg": server.database(),
            "s3://models/ckreg": buckets.prefix(),
        }
        for name, value in buckets.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
    session = blocks.Session(place, stands_for)
    found = blocks.blocks_of(page)
    with mock.patch.dict(os.environ):
        for block in found:
            session.run(block, page)
    assert sum(block.not_run is not None for block in found) == NOT_RUN.get(page.name, 0)


@pytest.mark.parametrize("page", of(*PAGES))
def test_a_page_has_blocks_of_known_kinds_only(page: Path) -> None:
    found = blocks.blocks_of(page)
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) == 2 * len(found), "a fence is indented, or of another kind"
    kinds = {block.kind for block in found if not block.kind.startswith("{")}  # MyST's own
    assert kinds <= blocks.KINDS
    if page.parent != ROOT:
        assert "sh" not in kinds, "only a README's two are for a shell"


@pytest.mark.parametrize("page", of(*PAGES))
def test_the_links_of_a_page_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_public_name_is_in_the_reference() -> None:
    import registry

    there = re.findall(r"\.\. auto\w+:: registry\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(there) == sorted(registry.__all__)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-c", ROOT / "docs",
         "-d", tmp_path / "doctrees", ROOT, tmp_path / "site"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "index.html").exists()
    reference = (tmp_path / "site" / "docs" / "api.html").read_text(encoding="utf-8")
    verbs = [name for name in dir(Registry) if not name.startswith("_")]
    assert [name for name in verbs if f'id="registry.Registry.{name}"' not in reference] == []


def test_every_module_and_test_that_the_page_of_laws_names_is_there() -> None:
    text = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if "`" in row[3]]
    assert len(rows) >= 25
    here = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", here, re.M))
    for _, _, modules, held, _ in rows:
        for name in re.findall(r"`([^`]+)`", modules):
            assert (ROOT / "registry" / name).is_file(), name
        for name in re.findall(r"`([^`]+)`", held):
            assert name in tests, name
