"""accelerate's states: recorded, resumed exactly, and loaded anywhere."""

from __future__ import annotations

import digits
import gloo
import pytest
import torch

from registry import Registry

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def test_a_killed_job_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    digits.check_resume("accelerate", tmp_path)


def test_what_is_recorded_is_what_trained(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        ended = digits.accelerate(tmp_path / "reg", tmp_path)
        for checkpoint in reg.find("digits-mlp"):
            net = digits.network()
            reg.load(checkpoint, into=net)
            assert checkpoint.acc == digits.accuracy(net)
        last = reg.get("digits-mlp")
        assert last == ended["last"]
        assert (last.container, last.config) == ("accelerate", {"lr": 0.01})
        assert last.provenance.topology == last.provenance.key_style == "recorded"
        optimizer = torch.optim.Adam(net.parameters())
        reg.load(last, into=net, optimizer=optimizer)
        moment = optimizer.state[net[0].weight]["exp_avg"]
        assert torch.equal(moment, ended["optimizer"]["state"][0]["exp_avg"])


@pytest.mark.ranks
def test_two_processes_save_one_checkpoint_and_load_it(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        ended = gloo.run("digits:gloo_accelerate", str(tmp_path / "reg"))
        assert [rank.code for rank in ended] == [0, 0], [rank.stderr for rank in ended]
        (made,) = reg.find("digits-mlp")
        assert [rank.answer for rank in ended] == [{"id": made.id, "same": True}] * 2
        assert (made.topology.strategy, made.topology.world_size) == ("ddp", 2)
        assert str(made.file_keys) == ""
        net = digits.network()
        reg.load(made, into=net)
        assert made.acc == digits.accuracy(net)


@pytest.mark.ranks
def test_random_states_that_another_machine_keeps_are_missed(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        words = [str(tmp_path / "reg"), str(tmp_path / "elsewhere")]
        ended = gloo.run("digits:gloo_accelerate_elsewhere", *words)
        assert [rank.code for rank in ended] == [0, 0], [rank.stderr for rank in ended]
        assert ended[0].answer.startswith("NotFoundError: the random states of rank 1 are not in")
        assert "rank 0 could not save: NotFoundError: the random states" in ended[1].answer
        assert "export TMPDIR=FOLDER" in ended[1].answer
        assert list(reg.find()) == []
