"""Several processes: any of them may call save and load, none hangs, one checkpoint comes of it."""

from __future__ import annotations

import gloo
import pytest
from nets import seeded

from registry import Registry

pytestmark = pytest.mark.ranks


def test_ddp_on_two_ranks_saves_into_all_and_loads_from_all(reg: Registry) -> None:
    ended = gloo.run("matrix", reg.location, timeout_s=240)

    assert [r.code for r in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    for rank in ended:
        outcome = rank.answer["outcome"]
        assert len(outcome) >= 20
        assert [pair for pair, (equal, _) in outcome.items() if not equal] == []
        tensors = len(seeded(1).state_dict())
        assert {count for pair, (_, count) in outcome.items()} == {tensors}
    assert ended[0].answer["versions"] == ended[1].answer["versions"] == 12
    assert reg.models()[0].versions == 12
    ddp = next(reg.find("net", dataset="DDP"))
    assert (ddp.topology.strategy, ddp.topology.world_size, ddp.topology.backend) == (
        "ddp",
        2,
        "gloo",
    )
    assert str(ddp.key_style) == "module."


def test_every_rank_that_saves_gets_the_one_checkpoint(reg: Registry) -> None:
    ended = gloo.run("unguarded", reg.location)

    assert [r.code for r in ended] == [0, 0], ended[1].stderr
    assert ended[0].answer["saved"] == ended[1].answer["saved"]
    assert ended[0].answer["equal"] is ended[1].answer["equal"] is True
    assert reg.models()[0].versions == 3


def test_a_save_guarded_by_rank_0_waits_for_nobody(reg: Registry) -> None:
    ended = gloo.run("guarded", reg.location)

    assert [r.code for r in ended] == [0, 0], ended[0].stderr
    assert ended[0].answer["equal"] is True
    assert reg.models()[0].versions == 2


def test_a_guarded_save_puts_later_ones_not_out_of_step(reg: Registry) -> None:
    ended = gloo.run("out_of_step", reg.location)

    assert ended[0].answer == ended[1].answer
    assert reg.get(ended[0].answer["saved"]).epoch == 1


def test_what_rank_0_refuses_is_refused_on_every_rank(reg: Registry) -> None:
    ended = gloo.run("refused", reg.location)

    assert all("extra.fn" in r.answer["message"] for r in ended), ended
    assert reg.models() == []


def test_the_writer_does_not_wait_for_a_dead_rank(reg: Registry) -> None:
    ended = gloo.run("killed", reg.location, "1")

    assert ended[1].code == -9
    assert ended[0].answer["saved"] == reg.get("net").id


def test_a_rank_whose_writer_died_says_so_in_time(reg: Registry) -> None:
    ended = gloo.run("killed", reg.location, "0", timeout_s=60)

    assert ended[0].code == -9
    assert ended[1].answer["type"] == "RemoteError"
    assert ended[1].answer["code"] == 12
    assert "rank 0" in ended[1].answer["message"]
    assert list(reg.find()) == []
