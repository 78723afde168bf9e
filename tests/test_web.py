"""The dashboard as a program that reads it sees it: pages, what is refused, and what is escaped."""

from __future__ import annotations

import hashlib
import html
import http.client
import re
import socket
from pathlib import Path

import pytest
import torch

from registry import Registry, cli

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


def test_the_default_registry_may_not_be_there_yet() -> None:
    reg = Registry.open()
    assert not reg.exists
    for page in ("/", "/checkpoints", "/storage", "/compare", "/go"):
        assert client(reg).get(page).status_code in (200, 303), page
    assert client(reg).get("/checkpoint?ref=net").status_code == 404
    assert not reg.exists


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


def everything(place: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files below a folder, with what is in them and when they were written."""
    return {
        str(p.relative_to(place)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in place.rglob("*")
        if p.is_file()
    }


@pytest.mark.sqlite_only("looks at the registry's files")
def test_no_page_writes_anything(reg: Registry, file: Path) -> None:
    reg.push(file, model="net", acc=0.5)
    reg.remove(reg.push(file, model="net", acc=0.6))
    before = everything(Path(reg.location))
    web = client(reg)
    for page in (
        "/", "/checkpoints?model=net&sort=-acc", "/checkpoint?ref=net@v1", "/chart.json?model=net",
        "/compare?a=net@v1&b=net@v1", "/storage?show=models", "/storage?show=gc&grace=0",
        "/storage?show=prune&model=net&best=1",
        "/count?model=net", "/go?q=net@best",
    ):  # fmt: skip
        assert web.get(page).status_code in (200, 303), page
    assert everything(Path(reg.location)) == before


def test_many_models_come_by_pages(reg: Registry, file: Path) -> None:
    for number in range(53):
        reg.push(file, model=f"net-{number:02}")
    web = client(reg)
    first = re.findall(r'data-open href="[^"]*">([^<]*)<', web.get("/").text)
    following = html.unescape(re.findall(r'data-next href="([^"]*)"', web.get("/").text)[0])
    second = re.findall(r'data-open href="[^"]*">([^<]*)<', web.get(following).text)
    assert [*first, *second] == [f"net-{number:02}" for number in range(53)]
    found = web.get("/?q=NET-3").text
    assert re.findall(r'data-open href="[^"]*">([^<]*)<', found) == [
        f"net-{number}" for number in range(30, 40)
    ]


def test_a_list_has_the_columns_of_the_command_line(reg: Registry, file: Path) -> None:
    from registry.output import CHECKPOINT_COLUMNS

    reg.push(file, model="net", acc=0.5)
    text = client(reg).get("/checkpoints").text
    heads = re.findall(r'<a id="sort-\d+"[^>]*>([^<]*)<', text)
    assert [head.upper() for head in heads] == [column.name for column in CHECKPOINT_COLUMNS]


@pytest.mark.parametrize(
    ("query", "said"),
    [("model=nat", "did you mean"), ("model=net&sort=nothing", "can&#39;t sort by"),
     ("model=net&run=nothing", "no run"), ("model=net&after=x", "no place in a list"),
     ("model=net&tag=!", "must be a letter")],
)  # fmt: skip
def test_what_a_list_cannot_do_is_said(reg: Registry, file: Path, query: str, said: str) -> None:
    reg.push(file, model="net")
    answer = client(reg).get(f"/checkpoints?{query}")
    assert (400 <= answer.status_code < 500, said in answer.text) == (True, True)


def test_a_chart_has_its_points_by_run_and_the_best(reg: Registry, file: Path) -> None:
    for epoch in range(3):
        reg.push(file, model="net", dataset="a", run="one", epoch=epoch, acc=epoch / 4)
    reg.push(file, model="net", dataset="b", epoch=7, acc=0.1)
    reg.push(file, model="net", dataset="a", acc=0.7)  # without an epoch, and the best
    web = client(reg)
    found = web.get("/chart.json?model=net&dataset=a").json()
    assert (found["metric"], found["x"], found["total"], found["without_x"]) == (
        "acc",
        "epoch",
        4,
        1,
    )
    assert (found["at"], found["value"]) == ([0, 1, 2], [0.0, 0.25, 0.5])
    assert ([found["runs"][run] for run in found["run"]], found["best"]) == (["one"] * 3, [])
    by_version = web.get("/chart.json?model=net&x=version").json()
    assert [best["version"] for best in by_version["best"]] == [5, 4]
    assert by_version["at"] == [1, 2, 3, 4, 5]
    of_run = web.get("/chart.json?model=net&run=one&x=version").json()
    assert of_run["best"] == []  # it isn't of that run
    assert web.get("/chart.json?model=net&x=nothing").status_code == 400
    assert web.get("/chart.json").status_code == 400


def test_storage_foresees_prune_and_names_the_command(reg: Registry, file: Path) -> None:
    for epoch in range(6):
        reg.push(file, model="vision/net", dataset="a", epoch=epoch, acc=epoch / 10)
    before = reg.count()
    web = client(reg)
    text = web.get("/storage?show=prune&model=vision/net&best=1&last=2").text
    assert "<b>4 checkpoints</b> of 6 would go" in text
    assert f"ckreg prune vision/net --keep-best 1 --keep-last 2 --dry-run -r {reg.location}" in text
    assert len(re.findall(">goes<", text)) == 4
    for query, said in (
        ("model=vision/net", "say what to keep"), ("best=1", "name the model"),
        ("model=nat&best=1", "no checkpoint matches"), ("model=vision/net&best=x", "is a number"),
        ("model=vision/net&best=0", "1"), ("model=vision/net&last=99999999999", "is a number"),
    ):  # fmt: skip
        answer = web.get(f"/storage?show=prune&{query}")
        found = re.findall(r'role="alert">([^<]*)<', answer.text)
        assert (len(found), said in found[0], answer.status_code) == (1, True, 200), query
    assert reg.count() == before


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


FOREIGN = [
    "evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "[::1", "localhost:x",
    "192.168.0.7:8420", "127.0.0.1@evil.example",
]  # fmt: skip


def test_a_foreign_host_is_answered_nothing(reg: Registry, file: Path) -> None:
    reg.push(file, model="secret-net")
    web = client(reg)
    for host in FOREIGN:
        answer = web.get("/", headers={"host": host})
        assert (answer.status_code, "secret-net" in answer.text) == (421, False), host
    for host in ("127.0.0.1", "localhost:8420", "LOCALHOST:1", "[::1]:8420"):
        assert web.get("/", headers={"host": host}).status_code == 200, host


def test_nothing_but_reading_is_answered(reg: Registry, file: Path) -> None:
    ckpt, web = reg.push(file, model="net"), client(reg)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        for path in ("/", "/checkpoint?ref=net", "/static/style.css"):
            answer = web.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD"), method
    assert reg.get("net") == ckpt
    assert web.head("/").status_code == 200


OUTSIDE = [
    "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd",
    "/static/%2fetc%2fpasswd", "/static/vendor/../../app.py", "/static/..%5capp.py",
    "/../../etc/passwd", "/static/%00", "/static/" + "a" * 5000,
]  # fmt: skip


def test_no_path_leads_out_of_the_static_files(reg: Registry) -> None:
    web = client(reg)
    for path in OUTSIDE:
        answer = web.get(path)
        assert answer.status_code == 404, path
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


def test_a_token_leads_nowhere_else(reg: Registry) -> None:
    web = client(reg, token="0123456789abcdef")
    for path in ("//evil.example/", "///evil.example", "/\\evil.example", "/'\"><b>"):
        answer = web.get(f"http://127.0.0.1:8420{path}?token=0123456789abcdef")
        to = re.findall(r'url=([^"]*)"', answer.text)
        assert len(to) == 1, path
        assert re.match(r"/[^/\\]", to[0]), path
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


# --- the command ----------------------------------------------------------------------------------


def test_without_the_extra_the_command_says_how_to_get_it(
    reg: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("registry.web.find_spec", lambda name: None)
    assert cli.run(["-r", reg.location, "ui"]) == 1
    said = capsys.readouterr().err
    assert "the dashboard needs starlette and jinja2 and uvicorn" in said
    assert "pip install 'ckreg[ui]'" in said


def test_a_port_that_is_taken_is_said(reg: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.run(["-r", reg.location, "ui", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port} can't be listened on: Address already in use" in said
    assert "--port 0" in said


def test_a_short_token_is_refused(reg: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["-r", reg.location, "ui", "--port", "0", "--token", "guess"]) == 2
    assert "16 characters" in capsys.readouterr().err


def test_a_token_comes_by_the_environment_as_well(
    reg: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKREG_UI_TOKEN", "guess")
    assert cli.run(["-r", reg.location, "ui", "--port", "0"]) == 2
    assert "16 characters" in capsys.readouterr().err


def test_an_error_of_ours_shows_no_more_than_its_kind_under_the_same_headers(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg.push(file, model="net")
    web = TestClient(
        application(reg), base_url="http://127.0.0.1:8420", raise_server_exceptions=False
    )
    well = web.get("/checkpoints")

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("/home/ann/.pgpass: s3cr3t")

    monkeypatch.setattr(Registry, "page", failing)
    answer = web.get("/checkpoints")
    assert answer.status_code == 500
    assert "ckreg failed: RuntimeError" in answer.text
    assert "pgpass" not in answer.text
    assert set(well.headers) - {"vary"} <= set(answer.headers)
    with pytest.raises(RuntimeError, match="pgpass"):  # and the server prints it
        client(reg).get("/checkpoints")


@pytest.mark.sqlite_only("starts a process")
def test_another_interface_is_served_to_whoever_has_the_token(reg: Registry) -> None:
    import dashboards
    import httpx

    with dashboards.served(reg.location, "--host", "0.0.0.0") as address:
        assert re.fullmatch(r"http://[^/]+:\d+/\?token=[\w-]{32}", address)
        port = re.findall(r":(\d+)/", address)[0]
        at = f"http://127.0.0.1:{port}/"
        token = address.partition("token=")[2]
        assert httpx.get(at).status_code == 401
        assert httpx.get(at, headers={"authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.sqlite_only("starts a process")
def test_a_raw_path_leads_nowhere_either(reg: Registry) -> None:
    import dashboards

    with dashboards.served(reg.location) as address:
        port = int(re.findall(r":(\d+)/", address)[0])
        for path in [*OUTSIDE[:8], "http://evil.example/", "/static/../../../../../etc/passwd"]:
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            asked.putrequest("GET", path, skip_host=True)  # a client of ours would tidy it up
            asked.putheader("Host", f"127.0.0.1:{port}")
            asked.endheaders()
            answer = asked.getresponse()
            said = answer.read().decode()
            assert answer.status == 404, path
            assert "import" not in said
            assert "root:" not in said
            asked.close()
