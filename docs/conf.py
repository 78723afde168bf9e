"""How Sphinx makes a site of the pages: `sphinx-build -W -n -c docs . docs/_build`.

Law: nothing is fetched, and nothing is left out in silence: the source is the whole project, so
that a link to the README is a link, and a reference that leads nowhere is a warning, but for the
types of other packages.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import registry  # noqa: E402 - of this checkout

project = "ckreg"
author = copyright = "the authors of ckreg"
version = release = registry.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "benchmarks/README.md"]
exclude_patterns = ["docs/_build", ".*"]

html_theme = "furo"
html_title = f"ckreg {version}"
default_role = "code"  # the docstrings write `word` as Markdown does
smartquotes = False  # a quote in a sentence may be a command's
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_mock_imports = ["lightning", "transformers", "accelerate"]  # seconds each, and not needed
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

FOREIGN = (
    r"(torch|collections\.abc|datetime|pathlib|os)\.\w+(\.\w+)*|timedelta"
    r"|((collections\.abc\.)?Mapping|tuple)\[str"
)
"""Types whose pages would have to be fetched, and two that Sphinx cuts: they stay plain text."""
OURS = (
    r"[A-Z][A-Za-z]+"
    r"|registry\.(blobs|catalog\.scopes|drafting|keys|location|urls)\..*|registry\.values\.(V|Digest|CheckpointId)"
)
"""Bare names of annotations (imported for types alone); and what only the inside hands on."""
nitpick_ignore_regex = [("py:class", FOREIGN), ("py:class", OURS)]

SEVERAL = re.compile(r":(ivar|param) (\w+(?:, \w+)+): (.*)")


def _one_by_one(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Write `a, b: what both are` as two fields: Sphinx takes the first word for a type."""
    for at, line in reversed(list(enumerate(lines))):
        if found := SEVERAL.fullmatch(line):
            lines[at : at + 1] = [f":{found[1]} {one}: {found[3]}" for one in found[2].split(", ")]


def _found(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Lead a type's name to where this site describes it: annotations name its own module."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py":
        return None
    for full in env.domains["py"].objects:
        if name and full.endswith(f".{name}") and full.count(".") <= 2:
            kind = "exc" if name.endswith(("Error", "Warning")) else "class"
            return env.domains["py"].resolve_xref(
                env, node["refdoc"], app.builder, kind, full, node, content
            )
    return None


def _first_page(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        to = f"{root_doc}.html"
        Path(app.outdir, "index.html").write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={to}">\n'
        )


def setup(app: Any) -> None:
    """Be asked by Sphinx."""
    app.connect("autodoc-process-docstring", _one_by_one, priority=900)  # after napoleon's
    app.connect("missing-reference", _found)
    app.connect("build-finished", _first_page)
