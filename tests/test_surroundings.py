"""What is recorded of who runs and from which code: no secret, no claim that isn't known."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from registry import surroundings
from registry.surroundings import command, mask

SECRET = "hunter2"

SECRETS = (
    # flags, and the word after
    "--password hunter2",
    "--password -hunter2",
    "--password --hunter2",
    "--passwords hunter2",
    "--passwords hunter2 hunter2 hunter2 --lr 0.1",
    "--tokens hunter2 hunter2",
    "--api-key hunter2",
    "--apiKeys hunter2",
    "--accessToken hunter2",
    "--accessTOKEN hunter2",
    "--HFToken hunter2",
    "--hftoken hunter2",
    "--wandb-key hunter2",
    "--wandb.api_key hunter2",
    "--logger.api_key hunter2",
    "--logger.wandb.token hunter2",
    "--aws_secret_access_key hunter2",
    "--private-key-text hunter2",
    "--passphrase hunter2",
    "--credentials hunter2",
    "--auth hunter2",
    "--token --token hunter2",
    "-token hunter2",
    "HF_TOKEN hunter2",
    "config set wandb.api_key hunter2",
    # a name and its value in one word
    "--tokens=hunter2",
    "--token=-hunter2",
    "--token:hunter2",
    "-Dpassword=hunter2",
    "-DapiKey=hunter2",
    "PGPASSWORD=hunter2",
    "MYSQL_PWD=hunter2",
    "SSHPASS=hunter2",
    "WANDB_API_KEY:hunter2",
    "+logger.api_key=hunter2",
    "--opt=token=hunter2",
    "--opt 'lr: 0.1, token: hunter2'",
    "--opt 'token = hunter2'",
    "'env[TOKEN]=hunter2'",
    "'auth[user]=hunter2'",
    "'env[\"TOKEN\"]=hunter2'",
    "-e 'HF_TOKEN hunter2'",
    "-e 'HF_TOKEN hunter2 hunter2'",
    "--password= hunter2",
    "--password: -hunter2",
    "--header 'Authorization: Bearer hunter2'",
    "'--header=Authorization: Bearer hunter2'",
    "--header Authorization: Bearer hunter2",
    "-H 'X-API-Key: hunter2'",
    "-H 'Cookie: id=hunter2'",
    """'{"token": "hunter2"}'""",
    """'{"lr": 1, "api_key":"hunter2", "x": "hunter2"}'""",
    r"""'{\"token\": \"hunter2\"}'""",
    """'{"auth": {"user": "me", "what": "hunter2"}}'""",
    """'["--token", "hunter2"]'""",
    "bash -c 'export HF_TOKEN=hunter2; python train.py'",
    # URLs
    "db://me:hunter2@host/x",
    "db://me:p@hunter2@host",
    "db://me:p/hunter2@host",
    "db://me:p?hunter2@host",
    "db://me:p#hunter2@host",
    "db://me:hunter2/p@x@host",
    "db://me:123/hunter2@host",
    "db://me:p:hunter2@host",
    "db://me@mail:p/hunter2@host",
    "'db://me:p hunter2@host'",
    "redis://:hunter2@host",
    "https://hunter2@github.com/a/b",
    "https://hunter2:@github.com/a/b",
    "https://hunter2:x-oauth-basic@github.com/a/b",
    "https://x-access-token:hunter2@github.com/a/b",
    "git+https://hunter2@github.com/a/b@v1",
    "a://u:hunter2@h,b://v:hunter2@i",
    "postgresql://h/db?user=x&password=hunter2",
    "postgresql://h/db?password=hunter2&user=x",
    "'jdbc:sqlserver://h;user=x;password=hunter2'",
    "'https://h/blob?sv=2024&sig=hunter2'",
    "--url=db://me:hunter2@host",
)

READABLE = (
    "train.py --lr 0.1 --epochs 3",
    "train.py --max-tokens 512 --max_new_tokens=9 --maxTokens 3 --num-tokens 4 --n-tokens 5",
    "train.py --tokens-per-batch 4096",
    "train.py --tokenizer bpe --tokenizer.name=gpt2 model.tokenizer=bpe",
    "train.py --keys module. --keys=module. --key-style ddp",
    "train.py --author x --authors=y",
    "token.py data.txt",
    "/srv/token/train.py data/secret/x.txt data.txt",
    "train.py --pin-memory --passes 2 --compass north",
    "http://localhost:8080/x s3://bucket/key/x git+https://github.com/o/r@v1",
    "me@example.org user@host:path",
    "get_token --lr 0.1",
)


@pytest.mark.parametrize("line", SECRETS)
def test_no_secret_is_recorded(line: str) -> None:
    shown = mask(["train.py", *shlex.split(line)])
    assert SECRET not in shown
    assert surroundings.MASK in shown


@pytest.mark.parametrize("line", SECRETS)
def test_a_secret_is_masked_wherever_it_stands_in_the_line(line: str) -> None:
    for before in (["--epochs", "3"], ["--use-auth"], ["a", "--token", "x"]):
        assert SECRET not in mask(["train.py", *before, *shlex.split(line), "--lr", "1"])


@pytest.mark.parametrize("line", READABLE)
def test_what_is_no_secret_stays_readable(line: str) -> None:
    assert mask(shlex.split(line)) == line


def test_what_stands_around_a_secret_stays_readable() -> None:
    for line, shown in (
        ("db://me:p@abc@h/x --lr 1", "db://me:***@h/x --lr 1"),
        ("https://oauth2:abc@h/x", "https://oauth2:***@h/x"),
        ("https://ghp_x@github.com/a", "https://***@github.com/a"),
        ("--password -abc --lr 1", "--password *** --lr 1"),
        ("--tokens a b --lr 1 x", "--tokens *** *** --lr 1 x"),
        ("--token a b", "--token *** b"),
        ("-H 'Authorization: Bearer abc'", "-H 'Authorization: ***'"),
        ("db://h/x?user=x&password=abc", "'db://h/x?user=x&password=***'"),
    ):
        assert mask(shlex.split(line)) == shown


def test_a_huge_word_costs_no_time() -> None:
    began = time.monotonic()
    for word in ("a" * 10**6, "a." * 10**5, "://a:" * 20_000, " " * 10**5, '"' * 10**5):
        assert len(command(["x", word]) or "") == 4096
    assert time.monotonic() - began < 10


# --- git ------------------------------------------------------------------------------------------


def repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.py").write_text("1\n")
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "x")):
        subprocess.run(["git", "-C", str(folder), *words], check=True, timeout=60)
    return folder


def slow_git(folder: Path, monkeypatch: pytest.MonkeyPatch, *, seconds: dict[str, float]) -> None:
    """Put a git before the real one that sleeps before some of its commands."""
    folder.mkdir()
    cases = "".join(f'*" {word} "*) sleep {s};;\n' for word, s in seconds.items())
    real = subprocess.run(
        ["sh", "-c", "command -v git"], capture_output=True, text=True, check=True
    ).stdout.strip()
    script = folder / "git"
    script.write_text(f'#!/bin/sh\ncase " $* " in\n{cases}esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_commit_is_clean_or_dirty(tmp_path: Path) -> None:
    clean, dirty = repository(tmp_path / "clean"), repository(tmp_path / "dirty")
    (dirty / "train.py").write_text("2\n")
    found = [surroundings._git(str(folder)) for folder in (clean, dirty)]
    assert [None if git is None else git.dirty for git in found] == [False, True]
    assert surroundings._git(str(tmp_path)) is None


def test_a_commit_of_unknown_state_is_no_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "code")
    slow_git(tmp_path / "bin", monkeypatch, seconds={"status": 30})
    assert surroundings._git(str(folder)) is None


def test_git_has_two_seconds_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository(tmp_path / "code")
    # Each is within two seconds, and only both together are not.
    slow_git(tmp_path / "bin", monkeypatch, seconds={"rev-parse": 1.4, "status": 1.4})
    assert surroundings._git(str(folder)) is None
