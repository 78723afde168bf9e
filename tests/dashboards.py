"""A registry worth looking at, its dashboard in a process of its own, and a browser that notes
everything it asks for: for the browser tests, and for the pictures in docs/.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from registry import Registry

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ROOT = Path(__file__).parent.parent

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def why_not() -> str | None:
    """Return why no browser can be driven here, or None."""
    if find_spec("playwright") is None:
        return "playwright is not installed"
    if CHROMIUM is None:
        return "no chromium is installed: apt-get install chromium"
    return None


def fill(reg: Registry, folder: Path, *, epochs: int = 24) -> None:
    """Put three models into a registry: several runs, datasets, tags, aliases, two monitors."""
    chance = random.Random(7)
    path = folder / "weights.pt"

    def push(width: int, **facts: Any) -> Any:
        prefix = facts.get("keys", "")
        weights = {f"{prefix}layer{i}.weight": torch.rand(width, 16) for i in range(4)}
        torch.save({"state_dict": weights}, path)
        return reg.push(path, **facts)

    for number, (run, lift) in enumerate([("warmup", 0.0), ("lr-3e-4", 0.02), ("augment", 0.045)]):
        for epoch in range(epochs):
            rise = 1 - 0.62 * math.exp(-epoch / (5 + number))
            acc = rise * (0.91 + lift) + chance.uniform(-0.008, 0.008)
            push(
                64, model="resnet50", dataset="cifar10", run=run, epoch=epoch, acc=round(acc, 4),
                metrics={"val/loss": round(2.3 * (1.04 - rise) + chance.random() / 20, 4)},
                strategy="ddp", world_size=4, keys="module.",
            )  # fmt: skip
    for epoch in range(6):
        push(64, model="resnet50", dataset="imagenet", run="scratch", epoch=epoch,
             acc=round(0.3 + 0.07 * epoch, 4))  # fmt: skip
    for epoch in range(8):
        push(96, model="vision/vit-b", dataset="imagenet", epoch=epoch, acc=0.6 + 0.02 * epoch,
             strategy="fsdp2", world_size=8)  # fmt: skip
    for step in range(1, 7):
        push(160, model="gpt/small", step=1000 * step,
             metrics={"val/loss": round(4 / step**0.4, 4)})  # fmt: skip
    reg.monitor("gpt/small", "val/loss", "min")
    best = reg.best("resnet50", dataset="cifar10")
    reg.alias(best, "production")
    reg.tag(best, "good", "published")
    reg.tag("resnet50@v12", "good")
    for version in (1, 2, 3):
        reg.remove(f"resnet50@v{version}")


@contextmanager
def served(location: str, *words: str) -> Iterator[str]:
    """Run `ckreg ui` and lend its address."""
    command = [sys.executable, "-m", "registry", "-r", location, "ui", "--port", "0", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise AssertionError(process.communicate()[1])
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert "Traceback" not in said, said


@dataclass
class Seen:
    """What a browser asked for, and what it complained of."""

    urls: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def said(self, message: ConsoleMessage) -> None:
        """Note what the console says that isn't a plain log."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    @property
    def hosts(self) -> set[str | None]:
        """The hosts that anything was asked of."""
        found = {urlsplit(u).hostname for u in self.urls if not u.startswith(("data:", "blob:"))}
        return set(found)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Lend a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def looking(
    browser: Browser, *, width: int = 1280, height: int = 860, dark: bool = False,
    scripts: bool = True,
) -> Iterator[tuple[Page, Seen]]:  # fmt: skip
    """Lend a page of a browser that knows nothing yet, and what it sees."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    try:
        page = context.new_page()
        page.set_default_timeout(30_000)
        seen = Seen()
        page.on("request", lambda request: seen.urls.append(request.url))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("console", seen.said)
        yield page, seen
    finally:
        context.close()
