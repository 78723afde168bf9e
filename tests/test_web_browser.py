"""The dashboard in a browser: what people see and do, and that nothing of it leaves the machine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import dashboards
import pytest
from backends import BACKENDS, why_not

from registry import Registry

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

if dashboards.why_not() is not None:
    pytest.skip(str(dashboards.why_not()), allow_module_level=True)

from playwright.sync_api import Error


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with dashboards.chromium() as found:
        yield found


@pytest.fixture(scope="module", params=["sqlite+folder", "postgres+folder"])
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the address of a filled registry's dashboard."""
    why = why_not(request.param)
    if why is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("shown")
    with ExitStack() as stack:
        reg = stack.enter_context(BACKENDS[request.param](folder))
        dashboards.fill(reg, folder)
        yield stack.enter_context(dashboards.served(reg.location))


@pytest.fixture
def page(browser: Browser, shown: str) -> Iterator[Page]:
    """Return a page; afterwards, nothing was asked of elsewhere and nothing went wrong."""
    with dashboards.looking(browser) as (page, seen):
        yield page
    assert seen.urls
    assert seen.hosts == {"127.0.0.1"}
    assert [c for c in seen.complaints if "400 (Bad Request)" not in c] == []


def until(page: Page, truth: str, timeout_s: float = 30) -> None:
    """Wait until an expression holds; the page's own policy lets no script do that in it."""
    ends = time.monotonic() + timeout_s
    while True:
        with suppress(Error):  # a page that goes while it is asked
            if page.evaluate(truth):
                return
        assert time.monotonic() < ends, truth
        page.wait_for_timeout(30)


def refs(page: Page) -> list[str]:
    """Return the refs in a table."""
    return page.locator("table [data-open]").all_inner_texts()


def test_the_models_are_there_with_their_best(page: Page, shown: str) -> None:
    page.goto(shown)
    assert refs(page) == ["gpt/small", "resnet50", "vision/vit-b"]
    row = page.locator("tr", has_text="resnet50")
    assert "cifar10" in row.inner_text()
    row.locator(".best").first.click()
    page.wait_for_url("**/checkpoint?ref=*")
    assert "resnet50@v" in page.locator("h1").inner_text()


def test_a_filter_changes_the_table_and_the_url(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    page.fill("[name=where]", 'acc > 0.9 and run == "augment"')
    page.press("[name=where]", "Enter")
    until(page, "!document.querySelector('#results').innerText.includes('scratch')")
    found = refs(page)
    assert found
    assert "where=acc" in page.url
    assert "dataset=" not in page.url  # what wasn't asked for isn't in it
    page.reload()
    assert refs(page) == found
    page.go_back()
    until(page, "document.querySelector('#results').innerText.includes('scratch')")


def test_a_filter_that_cannot_be_read_is_shown_with_its_place(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints")
    page.fill("[name=where]", "acc > 0.9 andd x")
    page.press("[name=where]", "Enter")
    said = page.locator("#mistake [role=alert]")
    said.wait_for()
    lines = said.inner_text().splitlines()
    assert lines[2].index("^") == lines[1].index("andd")
    page.fill("[name=where]", "epoch == 3")
    page.press("[name=where]", "Enter")
    until(page, "!document.querySelector('#mistake [role=alert]')")
    assert refs(page)


def test_a_select_filters_at_once(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    page.select_option("[name=dataset]", "imagenet")
    until(page, "document.querySelectorAll('#results tbody tr').length === 6")
    assert "dataset=imagenet" in page.url


def test_columns_sort_and_say_so(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    page.get_by_role("link", name="acc", exact=True).click()
    page.wait_for_selector("th[aria-sort=descending] >> text=acc")
    accs = page.locator("tbody tr td:nth-child(5)").all_inner_texts()
    assert accs == sorted(accs, reverse=True)
    page.locator("th a", has_text="acc").click()
    page.wait_for_selector("th[aria-sort=ascending] >> text=acc")
    accs = page.locator("tbody tr td:nth-child(5)").all_inner_texts()
    assert accs == sorted(accs)
    assert page.evaluate(
        "document.activeElement.closest('th') !== null"
    )  # the keyboard stays there


def test_pages_follow_each_other(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    first = refs(page)
    assert len(first) == 50
    page.click("[data-next]")
    page.wait_for_url("**after=*")
    until(page, "document.querySelectorAll('#results tbody tr').length === 25")
    second = refs(page)
    assert len({*first, *second}) == 75
    page.reload()
    assert refs(page) == second
    page.click("[data-prev]")
    until(page, "document.querySelectorAll('#results tbody tr').length === 50")
    assert refs(page) == first


def test_the_chart_names_the_point_under_the_pointer_and_opens_it(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50&dataset=cifar10")
    over = page.locator("#chart .u-over")
    over.wait_for()
    assert page.locator("#chart [data-legend] a").all_inner_texts() == [
        "augment", "lr-3e-4", "warmup",
    ]  # fmt: skip
    assert page.locator("#chart [data-note]").inner_text() == "69 points"
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.985, box["y"] + box["height"] * 0.1)
    tip = page.locator("#chart .tip b")
    tip.wait_for()
    said = tip.inner_text()
    assert re.fullmatch(r"resnet50@v\d+", said)
    assert page.locator("#chart [data-said]").inner_text().startswith(said)
    page.mouse.click(box["x"] + box["width"] * 0.985, box["y"] + box["height"] * 0.1)
    page.wait_for_url("**/checkpoint?*")
    assert said in page.locator("h1").inner_text()


def test_the_chart_is_walked_by_keys_and_knows_the_best(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=gpt/small")
    page.locator("#chart .u-over").wait_for()
    assert page.locator("#chart [data-title]").inner_text() == "val/loss by step"
    page.focus("[data-plot]")
    page.keyboard.press("End")
    assert "gpt/small@v6" in page.locator("#chart .tip").inner_text()
    assert "best" in page.locator("#chart .tip").inner_text()
    page.keyboard.press("ArrowLeft")
    assert "gpt/small@v5" in page.locator("#chart .tip").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/checkpoint?*")


def test_the_chart_follows_the_filter(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    until(page, "document.querySelector('[data-note]').innerText.startsWith('75 points')")
    page.select_option("[name=run]", "augment")
    until(page, "document.querySelector('[data-note]').innerText === '24 points'")
    page.select_option("[name=metric]", "val/loss")
    until(page, "document.querySelector('[data-title]').innerText === 'val/loss by epoch'")


def test_the_keyboard_reaches_everything(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "where"
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    chosen = page.locator("tr.at [data-open]")
    assert chosen.inner_text() == refs(page)[0]
    page.keyboard.press("x")
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.locator("[data-compare]").inner_text() == "Compare these two"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_url("**/checkpoint?*")
    page.keyboard.press("g")
    page.keyboard.press("s")
    page.wait_for_url("**/storage")


def test_two_marked_rows_are_compared(page: Page, shown: str) -> None:
    page.goto(f"{shown}checkpoints?model=resnet50")
    for at in (0, 3):
        page.locator("[data-pick]").nth(at).check()
    page.click("[data-compare]")
    page.wait_for_url("**/compare?a=*&b=*")


def test_storage_adds_up_by_model_and_foresees_gc(page: Page, shown: str) -> None:
    page.goto(f"{shown}storage")
    page.locator("#models table").wait_for()
    assert refs(page)[0] == "resnet50"
    page.fill("[name=grace]", "0")
    page.click("form[action$=gc] button")
    page.locator("#gc >> text=3 removed checkpoints").wait_for()
    assert "ckreg gc --grace 0 --dry-run" in page.locator("#gc pre").inner_text()
    page.fill("[name=grace]", "soon")
    page.click("form[action$=gc] button")
    page.locator("#gc [role=alert]").wait_for()


def test_storage_shows_what_prune_would_remove(page: Page, shown: str) -> None:
    page.goto(f"{shown}storage")
    page.fill("[name=model]", "vision/vit-b")
    page.click("form[action$=prune] button")
    page.locator("#prune >> text=5 checkpoints of 8 would go").wait_for()
    command = page.locator("#prune pre").inner_text()
    assert command.startswith("ckreg prune vision/vit-b --keep-best 3 --keep-last 2 --dry-run")
    assert page.locator("#prune .tag.bad").count() == 5


@pytest.mark.parametrize(
    "path",
    ["", "checkpoints?model=resnet50", "storage", "compare", "checkpoint?ref=resnet50@v50",
     "checkpoint?ref=none"],
)  # fmt: skip
def test_a_narrow_screen_scrolls_down_only(browser: Browser, shown: str, path: str) -> None:
    with dashboards.looking(browser, width=380, height=800) as (page, _):
        page.goto(shown + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.body.scrollWidth <= innerWidth")


def test_dark_is_dark_and_light_is_light(browser: Browser, shown: str) -> None:
    for dark in (True, False):
        with dashboards.looking(browser, dark=dark) as (page, _):
            page.goto(shown)
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", color)[:3])) < 120) is dark


def test_it_works_without_scripts(browser: Browser, shown: str) -> None:
    with dashboards.looking(browser, scripts=False) as (page, seen):
        page.goto(f"{shown}checkpoints?model=resnet50")
        page.select_option("[name=dataset]", "imagenet")
        page.click("text=Filter")
        assert len(refs(page)) == 6
        page.locator("th a", has_text="acc").click()
        assert page.locator("th[aria-sort=descending]").inner_text().strip("↓\n ") == "acc"
        page.goto(f"{shown}storage")
        page.click("text=Add up the files")
        assert refs(page)[0] == "resnet50"
        page.fill("[name=grace]", "0")
        page.click("form[action$=gc] button")
        assert "3 removed checkpoints" in page.locator("#gc").inner_text()
    assert seen.hosts == {"127.0.0.1"}


def test_an_empty_registry_says_what_to_type(browser: Browser, tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    with (
        dashboards.served(str(tmp_path / "reg")) as at,
        dashboards.looking(browser) as (page, seen),
    ):
        for path in ("", "checkpoints", "storage"):
            page.goto(at + path)
            assert "ckreg push" in page.locator("pre.command").first.inner_text()
    assert seen.complaints == []


def test_a_script_in_the_registry_does_nothing(browser: Browser, tmp_path: Path) -> None:
    import torch

    evil = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "w.pt")
    with Registry.create(tmp_path / "reg") as reg:
        for epoch in (1, 2):
            reg.push(
                tmp_path / "w.pt", model="net", dataset=evil, run=evil, note=evil, epoch=epoch,
                metrics={evil: epoch},
            )  # fmt: skip
        reg.monitor("net", evil, "max")
        location = reg.location
    with dashboards.served(location) as at, dashboards.looking(browser) as (page, seen):
        for path in ("", "checkpoints?model=net", "checkpoint?ref=net@v1", "storage"):
            page.goto(at + path)
            page.wait_for_load_state("networkidle")
            assert "run" not in page.title()
            assert page.locator("img[src=x]").count() == 0
        page.goto(at + "checkpoints?model=net")
        page.locator("#chart .u-over").wait_for()
        page.focus("[data-plot]")
        page.keyboard.press("ArrowRight")
        assert "onerror" in page.locator("#chart .tip").inner_text()  # as text
        assert page.title() == "net · ckreg"
    assert seen.hosts == {"127.0.0.1"}
    assert seen.complaints == []


def test_a_token_in_the_address_opens_it_once_and_for_all(browser: Browser, tmp_path: Path) -> None:
    Registry.create(tmp_path / "reg").close()
    words = ("--token", "0123456789abcdef")
    with (
        dashboards.served(str(tmp_path / "reg"), *words) as at,
        dashboards.looking(browser) as (page, _),
    ):
        assert at.endswith("/?token=0123456789abcdef")
        plain = at.partition("?")[0]
        answer = page.goto(plain)
        assert answer is not None
        assert answer.status == 401
        page.goto(at)
        page.wait_for_url(plain)
        assert page.title() == "Models · ckreg"
        assert page.evaluate("document.cookie") == ""
        page.click("text=Storage")
        assert page.title() == "Storage · ckreg"
