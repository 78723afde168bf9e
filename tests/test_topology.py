"""Topology: a round trip through JSON, checked fields, and its short form."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.topology import STRATEGIES, Device, Topology
from registry.values import FrozenMap, canonical_json

WORDS = st.text("abz09é-", min_size=1, max_size=8)
COUNTS = st.integers(0, 2**63 - 1)


def _maybe(values):
    return st.none() | values


TOPOLOGIES = st.builds(
    Topology,
    strategy=_maybe(st.sampled_from(STRATEGIES)),
    world_size=_maybe(COUNTS),
    rank=_maybe(COUNTS),
    backend=_maybe(WORDS),
    device_type=_maybe(WORDS),
    device_count=_maybe(COUNTS),
    devices=st.lists(
        st.builds(Device, COUNTS, WORDS, _maybe(WORDS), _maybe(COUNTS)), max_size=3
    ).map(tuple),
    visible_devices=_maybe(st.sampled_from(["", "0,1", "GPU-8f"])),
    hostname=_maybe(WORDS),
    torch_version=_maybe(WORDS),
    cuda_version=_maybe(WORDS),
    python_version=_maybe(WORDS),
    storage_tags=st.dictionaries(WORDS, COUNTS, max_size=3).map(FrozenMap),
)


@given(TOPOLOGIES)
def test_a_topology_survives_json(topology):
    again = Topology.from_dict(json.loads(canonical_json(topology.to_dict())))
    assert again == topology
    assert hash(again) == hash(topology)
    assert pickle.loads(pickle.dumps(topology)) == topology


def test_what_is_unknown_stays_unknown_and_unknown_fields_are_left_out():
    assert Topology.from_dict({}) == Topology()
    assert Topology.from_dict({"strategy": None, "from_the_future": 1}) == Topology()
    assert Topology.from_dict({"visible_devices": ""}).visible_devices == ""


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"strategy": "dpp"}, "strategy 'dpp' is none of single, dp, ddp"),
        ({"world_size": -1}, "world_size must be between"),
        ({"world_size": "4"}, "world_size must be an integer"),
        ({"device_type": "cu\nda"}, "device_type 'cu\\\\nda' must be"),
        ({"devices": [{"index": True, "type": "cuda"}]}, "device index must be an integer"),
        ({"devices": [{"index": 0, "type": "cuda", "name": 3}]}, "device name must be text"),
        ({"devices": "cuda"}, "devices must be a list"),
        ({"devices": ["cuda"]}, "device must be a table"),
        ({"storage_tags": ["cuda:0"]}, "storage_tags must be a table"),
        ({"visible_devices": 3}, "visible_devices must be text"),
        ([], "topology must be a table"),
    ],
)
def test_each_field_of_a_foreign_topology_is_checked(plain, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Topology.from_dict(plain)


A100 = "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize(
    ("topology", "short"),
    [
        (Topology(), "-"),
        (Topology("single", 1, device_type="cpu", device_count=1), "cpu"),
        (Topology("ddp", 2, device_type="cpu", device_count=2), "2 x cpu ddp"),
        (
            Topology(
                "ddp", 4, device_type="cuda", device_count=4,
                devices=(
                    Device(0, "cuda", A100), Device(1, "cuda", A100), Device(0, "cpu", "Xeon"),
                ),
            ),
            "4 x A100 ddp",
        ),
        (
            Topology(
                "dp", 1, device_type="cuda", device_count=2,
                devices=(Device(0, "cuda", A100), Device(1, "cuda", "Tesla T4")),
            ),
            "2 x cuda dp",
        ),
        (Topology("ddp"), "ddp"),
        (Topology(storage_tags=FrozenMap({"cuda:7": 12, "cpu": 3})), "cuda:7 tags"),
        (Topology(storage_tags=FrozenMap({"cuda:0": 1, "cuda:1": 1})), "2 device tags"),
        (Topology(storage_tags=FrozenMap({"cpu": 1})), "-"),
    ],
)  # fmt: skip
def test_a_topology_has_a_short_form(topology, short):
    assert topology.short() == short


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce GTX 1060 6GB", "GTX 1060"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("AMD Instinct MI250X", "MI250X"),
        ("Apple M2", "M2"),
    ],
)
def test_names_of_drivers_are_shortened(name, short):
    assert Topology(device_type="x", devices=(Device(0, "x", name),)).short() == short
