"""The dashboard as a program that reads it sees it: pages, what is refused, and what is escaped."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch

from registry import Registry

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ckreg[ui]'")
pytest.importorskip("httpx", reason="httpx is not installed")

from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from registry.web import views
from registry.web.app import application

HERE = Path(views.__file__).parent


def client(reg: Registry, *, token: str | None = None) -> TestClient:
    """Return a browser's requests to a registry's dashboard."""
    app = application(reg, token=token)
    return TestClient(app, base_url="http://127.0.0.1:8420", follow_redirects=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"w": torch.zeros(2)}}, path)
    return path


PAGES = ["/", "/checkpoints", "/checkpoints?model=vision/net", "/storage", "/compare"]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_answers(reg: Registry, file: Path, page: str) -> None:
    reg.push(file, model="vision/net", dataset="cifar10", epoch=1, acc=0.5)
    answer = client(reg).get(page)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_registry_has_every_page_too(reg: Registry, page: str) -> None:
    answer = client(reg).get(page)
    assert answer.status_code == (404 if "model=" in page else 200)


def test_a_checkpoint_has_a_page_by_ref_and_by_id(reg: Registry, file: Path) -> None:
    ckpt = reg.push(file, model="vision/net", acc=0.5)
    for ref in (ckpt.id, "vision/net@v1", "vision/net@best"):
        answer = client(reg).get("/checkpoint", params={"ref": ref})
        assert (answer.status_code, "vision/net@v1" in answer.text) == (200, True)


def test_what_there_isnt_is_a_page_that_says_how_to_go_on(reg: Registry, file: Path) -> None:
    reg.push(file, model="resnet50")
    answer = client(reg).get("/checkpoint?ref=resnt50")
    assert answer.status_code == 404
    assert "did you mean" in answer.text
    assert "resnet50" in answer.text
    assert client(reg).get("/nowhere").status_code == 404


def test_go_leads_to_a_model_or_a_checkpoint(reg: Registry, file: Path) -> None:
    ckpt = reg.push(file, model="vision/net", acc=0.5)
    web = client(reg)
    to = {q: web.get("/go", params={"q": q}).headers["location"] for q in
          ("", "vision/net", " vision/net@best ", ckpt.id[:8])}  # fmt: skip
    page = f"/checkpoint?ref={ckpt.id}"
    assert to == {
        "": "/",
        "vision/net": "/checkpoints?model=vision%2Fnet",
        " vision/net@best ": page,
        ckpt.id[:8]: page,
    }


# --- who may ask, and what ------------------------------------------------------------------------


def test_every_answer_says_what_a_browser_may_do_with_it(reg: Registry) -> None:
    web = client(reg)
    for answer in (
        web.get("/"),
        web.get("/nowhere"),
        web.get("/static/style.css"),
        web.post("/"),
        web.get("/", headers={"host": "evil.example"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "[::1", "localhost:x",
     "192.168.0.7:8420", "127.0.0.1@evil.example"],
)  # fmt: skip
def test_a_foreign_host_is_answered_nothing(reg: Registry, file: Path, host: str) -> None:
    reg.push(file, model="secret-net")
    answer = client(reg).get("/", headers={"host": host})
    assert (answer.status_code, "secret-net" in answer.text) == (421, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8420", "LOCALHOST:1", "[::1]:8420"])
def test_the_names_of_this_machine_are_answered(reg: Registry, host: str) -> None:
    assert client(reg).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/checkpoint?ref=net", "/static/style.css"])
def test_nothing_but_reading_is_answered(reg: Registry, file: Path, method: str, path: str) -> None:
    ckpt = reg.push(file, model="net")
    answer = client(reg).request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert reg.get("net") == ckpt


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd",
     "/static/%2fetc%2fpasswd", "/static/vendor/../../app.py", "/static/..%5capp.py",
     "/../../etc/passwd", "/static/%00", "/static/" + "a" * 5000],
)  # fmt: skip
def test_no_path_leads_out_of_the_static_files(reg: Registry, path: str) -> None:
    answer = client(reg).get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text
    assert "root:" not in answer.text


def test_a_page_of_another_site_reads_nothing(reg: Registry) -> None:
    web = client(reg)
    for site in ("cross-site", "same-site"):
        fetched = {"sec-fetch-site": site, "sec-fetch-mode": "cors"}
        assert web.get("/", headers=fetched).status_code == 403
        led = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
        assert web.get("/", headers=led).status_code == 200


def test_a_token_is_asked_for_and_kept_in_a_cookie(reg: Registry, file: Path) -> None:
    reg.push(file, model="secret-net")
    web = client(reg, token="0123456789abcdef")
    for path in ("/", "/?token=wrong", "/?token=", "/static/style.css", "/?token=0123456789abcdeé"):
        answer = web.get(path)
        assert (answer.status_code, "secret-net" in answer.text) == (401, False)
    entered = web.get("/checkpoints?model=secret-net&token=0123456789abcdef")
    assert entered.status_code == 200
    assert 'content="0;url=/checkpoints?model=secret-net"' in entered.text
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secret-net" in web.get("/").text  # by the cookie
    bearer = client(reg, token="0123456789abcdef")
    bearer.headers["authorization"] = "Bearer 0123456789abcdef"
    assert bearer.get("/").status_code == 200


@pytest.mark.parametrize(
    "path", ["//evil.example/", "///evil.example", "/\\evil.example", "/'\"><b>"]
)
def test_a_token_leads_nowhere_else(reg: Registry, path: str) -> None:
    web = client(reg, token="0123456789abcdef")
    answer = web.get(f"http://127.0.0.1:8420{path}?token=0123456789abcdef")
    to = re.findall(r'url=([^"]*)"', answer.text)
    assert len(to) == 1
    assert re.match(r"/[^/\\]", to[0])
    assert "<b>" not in answer.text


def test_with_a_token_an_address_is_a_host_too(reg: Registry) -> None:
    web = client(reg, token="0123456789abcdef")
    web.headers["authorization"] = "Bearer 0123456789abcdef"
    assert web.get("/", headers={"host": "192.168.0.7:8420"}).status_code == 200
    assert web.get("/", headers={"host": "evil.example"}).status_code == 421


# --- what is shown --------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"


@pytest.mark.parametrize("page", [*PAGES, "/checkpoint?ref=vision/net"])
def test_markup_in_the_registry_is_text(reg: Registry, file: Path, page: str) -> None:
    reg.push(
        file, model="vision/net", dataset=SCRIPT, run=SCRIPT, note=SCRIPT, metrics={SCRIPT: 1.0}
    )
    text = client(reg).get(page).text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "onerror=alert(1)>" not in text
    assert "{49}" not in text


def test_markup_in_a_request_is_text(reg: Registry) -> None:
    web = client(reg)
    for page in ("/checkpoint", "/checkpoints", "/compare", "/go", "/chart.json"):
        for name in ("ref", "q", "model", "dataset", "where", "sort", "after", "a", "b", "metric"):
            text = web.get(page, params={name: SCRIPT}).text
            assert "<script>alert" not in text
            assert "<img src=x" not in text


def test_no_template_marks_anything_as_safe() -> None:
    for path in (HERE / "templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|style=|\son\w+=|<style|javascript:", text), (
            path
        )


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in [
        *(HERE / "templates").glob("*"),
        HERE / "static/app.js",
        HERE / "static/style.css",
    ]:
        found = re.findall(r"(?:https?:)?//[\w.]+\.\w+", path.read_text())
        assert [u for u in found if "www.w3.org" not in u] == [], path


def test_what_is_vendored_is_as_it_was_published() -> None:
    folder = HERE / "static/vendor"
    rows = re.findall(
        r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", (folder / "VENDORED.md").read_text(), re.M
    )
    assert {name for name, _ in rows} == {
        p.name for p in folder.iterdir() if p.suffix in (".js", ".css")
    }
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_no_websocket_is_opened(reg: Registry) -> None:
    web = client(reg)
    with pytest.raises(WebSocketDisconnect), web.websocket_connect("/"):
        pass
