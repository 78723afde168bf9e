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


def test_each_rank_gets_its_own_random_states_back(reg: Registry) -> None:
    ended = gloo.run("rng_of_each", reg.location)

    assert [r.code for r in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    for rank in ended:
        assert [found for found, _ in rank.answer["found"]] == rank.answer["expected"]
        assert ["rng" in ignored for _, ignored in rank.answer["found"]] == [False, False]
    first, second = (rank.answer["expected"][1] for rank in ended)
    assert all(a != b for a, b in zip(first, second, strict=True))

    a, b, c = (rank.answer for rank in gloo.run("rng_loaded", reg.location, ranks=3))
    assert [a[0], b[0]] == [first, second]
    assert "rank 2 had none: 2 processes saved it" in c[1]["rng"]
    assert any("the resumed run will differ" in text for text in c[2])

    into = seeded(2)
    result = reg.load("net@epoch=1", into=into, rng=True)
    assert gloo.drawn() == first
    assert "1 process" in result.ignored["rng of rank 1"]


def test_a_rank_whose_random_states_are_missed_is_named(reg: Registry) -> None:
    ended = gloo.run("rng_without_one", reg.location)

    assert ended[0].answer["type"] == "RemoteError", ended[0].stderr
    assert "rank 1 did not save model='other', epoch=1" in ended[0].answer["message"]
    assert "on every rank" in ended[0].answer["hint"]
    assert reg.models() == []


def test_alone_each_is_the_only_process_and_nothing_else_is_taken(reg: Registry) -> None:
    saved = reg.save(seeded(1), model="net", rng="each")
    expected = gloo.drawn()
    reg.load(saved, into=seeded(2), rng=True)
    assert gloo.drawn() == expected
    with pytest.raises(ValueError, match="'each'"):
        reg.save(seeded(1), model="net", rng="all")  # type: ignore[call-overload]
