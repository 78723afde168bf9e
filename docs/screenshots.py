"""The pictures in docs/images/, taken of a dashboard by the browser that its tests drive.

python docs/screenshots.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

PICTURES = {
    "models": ("", False, 560),
    "checkpoints": ("checkpoints?model=resnet50&dataset=cifar10", False, 860),
    "checkpoints-dark": ("checkpoints?model=resnet50&dataset=cifar10", True, 860),
    "checkpoint": ("checkpoint?ref=resnet50@production", False, 980),
    "compare": ("compare?a=resnet50@v4&b=resnet50@production", False, 860),
    "storage": ("storage?show=prune&model=resnet50&best=3&last=2", False, 1240),
}
"""Each picture's page, whether it is dark, and its height."""


def main() -> None:
    """Fill a registry, and photograph its dashboard."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    import dashboards

    from registry import Registry

    (HERE / "images").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lab-") as name:
        place = Path(name) / "checkpoints"
        with Registry.create(place) as reg:
            dashboards.fill(reg, Path(name))
        with dashboards.served(str(place)) as at, dashboards.chromium() as browser:
            for picture, (path, dark, height) in PICTURES.items():
                with dashboards.looking(browser, dark=dark, height=height) as (page, _):
                    page.goto(at + path)
                    page.wait_for_load_state("networkidle")
                    if "dataset=" in path:
                        page.hover("[data-plot]", position={"x": 560, "y": 70})
                    page.screenshot(path=HERE / "images" / f"{picture}.png")


if __name__ == "__main__":
    main()
