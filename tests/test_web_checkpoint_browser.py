"""The page of a checkpoint and the page of two in a browser: choosing, copying, opening, comparing;
and that hostile text does nothing there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dashboards
import pytest
import torch
from backends import BACKENDS, why_not
from nets import seeded
from torch import nn

from registry import Checkpoint, Registry

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

if dashboards.why_not() is not None:
    pytest.skip(str(dashboards.why_not()), allow_module_level=True)

MARKUP = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"
LINK = "javascript:document.title='owned'"
BIDI = "\u202egpj.exe\u202c\x1b[31m"


@dataclass
class Shown:
    """A dashboard: where it is, and the checkpoints that it has."""

    url: str
    one: Checkpoint
    two: Checkpoint
    large: Checkpoint
    evil: Checkpoint
    foreign: Checkpoint

    def page(self, path: str, **query: Any) -> str:
        """Return the address of a page."""
        said = "&".join(f"{name}={value}" for name, value in query.items())
        return f"{self.url}{path}?{said}"


class Evil:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def _fill(reg: Registry, folder: Path) -> dict[str, Checkpoint]:
    net = seeded(1)
    one = reg.save(nn.DataParallel(net), model="net", dataset="d", epoch=1, acc=0.5)
    with torch.no_grad():
        net.model[0].weight += 0.5  # type: ignore[operator]
    two = reg.save(net, model="net", dataset="d", epoch=2, acc=0.6)
    blocks = nn.ModuleDict({f"block{i}": nn.Linear(2, 2) for i in range(250)})
    large = reg.save(blocks, model="large", epoch=1)
    state = {f"{MARKUP}.w": torch.ones(1), f"{LINK}.w": torch.ones(1), f"{BIDI}.w": torch.ones(1)}
    tree = {"state_dict": state, "evil": Evil(folder / "ran")}
    torch.save(tree, folder / "evil.pt")
    evil = reg.push(
        folder / "evil.pt", model="evil", dataset=MARKUP, run=LINK, note=f"{BIDI}{MARKUP}",
        metrics={MARKUP: 1.0}, epoch=1,
    )  # fmt: skip
    torch.save(nn.DataParallel(net).state_dict(), folder / "foreign.pt")
    foreign = reg.push(folder / "foreign.pt", model="foreign")
    return {"one": one, "two": two, "large": large, "evil": evil, "foreign": foreign}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with dashboards.chromium() as found:
        yield found


@pytest.fixture(scope="module", params=["sqlite+folder", "postgres+folder"])
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    """Return a filled registry's dashboard; afterwards, no file's code ran."""
    why = why_not(request.param)
    if why is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("shown")
    with ExitStack() as stack:
        reg = stack.enter_context(BACKENDS[request.param](folder))
        found = _fill(reg, folder)
        yield Shown(stack.enter_context(dashboards.served(reg.location)), **found)
    assert not (folder / "ran").exists()


@pytest.fixture
def page(browser: Browser, shown: Shown) -> Iterator[Page]:
    """Return a page that may use the clipboard; afterwards, nothing was asked of elsewhere and
    nothing went wrong.
    """
    with dashboards.looking(browser) as (page, seen):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield page
    assert seen.hosts == {"127.0.0.1"}
    assert seen.complaints == []


def test_the_plan_follows_what_is_chosen(page: Page, shown: Shown) -> None:
    page.goto(shown.page("checkpoint", ref=shown.one.id))
    assert page.locator("#plan dl").count() == 0  # the file isn't opened until it is asked for
    page.click("text=Show the plan")
    page.locator("#plan dl", has_text="map_location").wait_for()
    assert "none renamed" in page.locator("#plan").inner_text()
    page.select_option("[name=wrapper]", "module._orig_mod.")
    page.locator("#plan dl", has_text="16 renamed").wait_for()
    page.select_option("[name=device]", "cuda:0")
    page.locator("#plan dl", has_text="'cuda:0'").wait_for()
    code = page.locator("#python").inner_text()
    assert "DistributedDataParallel(torch.compile(net.to('cuda:0')))" in code
    assert page.url == shown.page("checkpoint", ref=shown.one.id)
    assert page.locator("#plan").count() == 1


def test_another_device_is_typed_and_a_wrong_one_refused_in_place(page: Page, shown: Shown) -> None:
    page.goto(shown.page("checkpoint", ref=shown.one.id))
    name = page.locator("[name=other]")
    assert not name.is_visible()
    page.select_option("[name=device]", "other")
    page.locator("#plan", has_text="Name the device").wait_for()
    name.fill("tpu:0")
    name.press("Enter")
    page.locator("#plan [role=alert]", has_text="'tpu'").wait_for()
    name.fill("xpu:1")
    name.press("Enter")
    page.locator("#plan dl", has_text="'xpu:1'").wait_for()
    assert page.locator("#plan [role=alert]").count() == 0


def test_a_refused_plan_shows_its_cure(page: Page, shown: Shown) -> None:
    page.goto(shown.page("checkpoint", ref=shown.foreign.id))
    page.select_option("[name=wrapper]", "_orig_mod.")
    refused = page.locator("#plan [role=alert]")
    refused.wait_for()
    assert "ckreg push FILE --keys 'module.'" in refused.inner_text()
    page.fill("[name=keys]", "module.")
    page.press("[name=keys]", "Enter")
    page.locator("#plan dl", has_text="16 renamed").wait_for()


def test_a_copy_button_fills_the_clipboard(page: Page, shown: Shown) -> None:
    page.goto(shown.page("checkpoint", ref=shown.one.id))
    page.click("text=Show the plan")
    page.locator("#pull").wait_for()
    for id in ("python", "pull", "plan-command"):
        button = page.locator(f"button[data-copies={id}]")
        button.click()
        page.locator(f"button[data-copies={id}]", has_text="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator(f"#{id}").inner_text() != ""
    page.click("button[data-copied]")
    page.locator("button[data-copied]", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "net@v1"
    page.locator("button[data-copied]", has_text="Copy").wait_for()  # and again, later


def test_modules_open_where_they_are(page: Page, shown: Shown) -> None:
    page.goto(shown.page("checkpoint", ref=shown.one.id))
    page.locator("#tensors summary", has_text="head").click()
    inside = page.locator("#tensors details", has=page.locator("summary", has_text="head"))
    assert inside.locator(".tensor").all_inner_texts()[0].startswith("bias")
    assert inside.locator(".tensor").first.is_visible()
    assert page.locator("#tensors .tensor").last.is_visible()  # the net's own
    page.goto(shown.page("checkpoint", ref=shown.large.id))
    rows = page.locator("#tensors summary")
    assert rows.count() == 100
    assert rows.all_inner_texts()[2].startswith("block2")
    page.click("#tensors .more >> text=150 more")
    page.locator("#tensors summary", has_text="block100").wait_for()
    page.click("#tensors .more >> text=50 more")
    page.locator("#tensors summary", has_text="block249").wait_for()
    assert rows.count() == 250
    page.locator("#tensors summary", has_text="block249").click()
    page.locator("#tensors .tensor", has_text="weight").wait_for()
    assert page.locator("#tensors .tensor").all_inner_texts()[1].startswith("weight")
    page.locator("#tensors summary", has_text="block249").click()
    page.locator("#tensors summary", has_text="block249").click()  # asked for once
    assert page.locator("#tensors .tensor").count() == 2


def test_two_are_compared_and_swapped(page: Page, shown: Shown) -> None:
    page.goto(f"{shown.url}compare")
    page.fill("[name=a]", "net@v1")
    page.fill("[name=b]", "net@v2")
    page.press("[name=b]", "Enter")
    page.locator("#facts table", has_text="metrics.acc").wait_for()
    assert page.locator("#numbers table").count() == 0
    page.click("text=Compare the values")
    page.locator("#numbers table", has_text="model.0").wait_for()
    assert page.locator("#numbers tbody tr").count() == 1
    page.click("text=Swap")
    page.wait_for_url(f"**/compare?a={shown.two.id}&b={shown.one.id}")
    assert page.input_value("[name=a]") == "net@v2"


def test_from_a_page_it_is_compared_with_another(page: Page, shown: Shown) -> None:
    page.goto(shown.page("checkpoint", ref=shown.two.id))
    page.fill("#lineage [name=a]", "net@v1")
    page.press("#lineage [name=a]", "Enter")
    page.wait_for_url("**/compare?a=net%40v1&b=*")
    assert page.input_value("[name=b]") == "net@v2"


def test_hostile_text_does_nothing(page: Page, shown: Shown) -> None:
    asked = []
    page.on("dialog", lambda dialog: asked.append(dialog.message) or dialog.dismiss())
    for path, query in (
        ("checkpoint", {"ref": shown.evil.id}),
        ("checkpoint/plan", {"ref": shown.evil.id}),
        ("checkpoint/modules", {"ref": shown.evil.id}),
        ("compare", {"a": shown.evil.id, "b": shown.one.id}),
        ("compare/numbers", {"a": shown.evil.id, "b": shown.evil.id}),
    ):
        page.goto(shown.page(path, **query))
        assert "owned" not in page.title()
        for link in page.locator("main a").all():
            assert str(link.get_attribute("href")).startswith(("/", "#"))
        assert page.locator("main script, main img, main iframe").count() == 0
    page.goto(shown.page("checkpoint", ref=shown.evil.id))
    for summary in page.locator("#tensors summary").all():
        summary.click()
    page.click("text=Show the plan")
    page.locator("#plan dl").wait_for()
    page.click("text=By hand")
    page.click("button[data-copies=by-hand]")
    page.locator("button[data-copies=by-hand]", has_text="Copied").wait_for()
    assert "owned" not in page.title()
    assert asked == []
    text = page.locator("body").inner_text()
    assert "\\u202egpj.exe" in text
    assert not [c for c in text if c in "\u202e\u202c\x1b"]


def test_without_scripts_all_of_it_is_there(browser: Browser, shown: Shown) -> None:
    with dashboards.looking(browser, scripts=False) as (page, _):
        page.goto(shown.page("checkpoint", ref=shown.large.id))
        page.select_option("[name=wrapper]", "module.")
        page.click("text=Show the plan")
        assert "500 renamed" in page.locator("#plan").inner_text()
        assert page.input_value("[name=wrapper]") == "module."
        page.click("h1 a")
        page.locator("#tensors summary", has_text="block7").first.click()
        page.locator("#tensors details[open] a").click()
        assert "weight" in page.locator("#level").inner_text()
        page.goto(shown.page("compare", a=shown.one.id, b=shown.two.id))
        page.click("text=Compare the values")
        assert "model.0" in page.locator("#numbers").inner_text()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_no_page_is_wider_than_its_window(
    browser: Browser, shown: Shown, width: int, dark: bool
) -> None:
    with dashboards.looking(browser, width=width, dark=dark) as (page, seen):
        for address in (
            shown.page("checkpoint", ref=shown.one.id),
            shown.page("checkpoint", ref=shown.evil.id),
            shown.page("checkpoint/plan", ref=shown.one.id),
            shown.page("compare", a=shown.one.id, b=shown.evil.id),
            shown.page("compare/numbers", a=shown.one.id, b=shown.two.id),
        ):
            page.goto(address)
            wider = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wider <= 0, address
        assert seen.complaints == []
