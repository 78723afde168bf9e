"""A loop of one's own: what `Run.save` saves is enough for a killed job to go on exactly."""

from __future__ import annotations

import digits
import pytest

from registry import Registry

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
