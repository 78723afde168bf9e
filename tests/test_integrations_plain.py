"""A loop of one's own: what `Run.save` saves is enough for a killed job to go on exactly."""

from __future__ import annotations

import digits
import pytest
import torch

from registry import Best, ConflictError, Registry

pytestmark = pytest.mark.slow


def test_a_killed_job_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    digits.check_resume("plain", tmp_path)


def test_best_has_the_highest_accuracy_and_it_is_that_of_these_weights(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        digits.plain(tmp_path / "reg", tmp_path)
        by_hand = {}
        for checkpoint in reg.find("digits-mlp"):
            net = digits.network()
            reg.load(checkpoint, into=net)
            by_hand[checkpoint.version] = digits.accuracy(net)
        assert by_hand == {c.version: c.acc for c in reg.find("digits-mlp")}
        best = reg.best("digits-mlp")
        assert by_hand[best.version] == max(by_hand.values())
        assert sorted(by_hand) == [2, 3, 4]  # keep=Best(3) | Last(2)


def test_a_pushed_file_counts_to_a_run_whose_policy_then_applies(tmp_path):
    net = digits.network()
    with Registry.create(tmp_path / "reg") as reg:
        run = reg.run("m", dataset="d", name="a", config={"lr": 1}, keep=Best(1))
        for epoch, acc in enumerate([0.5, 0.9, 0.1, 0.2]):
            path = tmp_path / f"{epoch}.pt"
            torch.save({"state_dict": net.state_dict(), "epoch": epoch, "acc": acc}, path)
            made = reg.push(path, run=run)
            assert made.run is not None
            assert (made.run.id, made.model, made.dataset) == (run.id, "m", "d")
        assert [c.epoch for c in reg.find("m", run=run, sort="version")] == [1, 3]
        with pytest.raises(ConflictError, match="the run is of model='m', dataset='d'"):
            reg.push(path, model="other", run=run)
