"""DCP folders are read without torch's unpickling: whole, or refused with the wrong file's name."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gloo
import pytest
import reading
import torch
import torch.distributed.checkpoint as dcp
from folder_files import (
    Whole,
    assert_same,
    built,
    contents_of,
    copied,
    described,
    files_of,
    in_rows,
    torch_saved,
    write,
    write_dcp,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from registry import AmbiguousError, CkregError, ContainerError, DamagedError, UntrustedError
from registry.containers import Assembled, Opaque, Tensor, read, read_folder, walk
from registry.containers.dcp_metadata import Pieces, check_cover

W = torch.arange(12.0).reshape(4, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what two ranks of FSDP2 saved, see gloo.py."""
    folder = tmp_path_factory.mktemp("sharded")
    ended = gloo.run("sharded", str(folder))
    assert [rank.answer for rank in ended] == [{"rank": 0}, {"rank": 1}], ended[0].stderr
    return folder


def by_hand(folder: Path, **how: Any) -> Path:
    """Write the usual folder: a model in two ranks' files, and an epoch."""
    values = {"model.w": in_rows(W), "model.b": [((0,), torch.ones(2))], "epoch": 7}
    paths = {"model.w": ("model", "w"), "model.b": ("model", "b"), "epoch": ("epoch",)}
    return write_dcp(folder, values, paths=paths, **how)


# --- whole folders --------------------------------------------------------------------------------


@pytest.mark.ranks
def test_a_net_saved_by_two_ranks_is_whole_again(saved: Path) -> None:
    found = described(saved / "dcp")
    full = torch.load(saved / "full.pt")
    assert_same(found.weights, full, saved / "dcp")
    split = found.weights["0.weight"]
    assert isinstance(split, Assembled)
    assert {chunk.tensor.storage.file for chunk in split.chunks} == {
        "__0_0.distcp",
        "__1_0.distcp",
    }
    # One row over two ranks: the second has nothing of it.
    assert isinstance(found.weights["2.weight"], Tensor)
    assert found.epoch == 12


@pytest.mark.ranks
def test_its_optimizer_comes_by_the_names_of_parameters(saved: Path) -> None:
    found = described(saved / "dcp").optimizers["optimizer"]
    moments = torch.load(saved / "moments.pt")
    assert found["state"].keys() == moments["state"].keys()
    for name, slots in moments["state"].items():
        assert_same(found["state"][name], slots, saved / "dcp")
    assert found["param_groups"][0]["params"] == moments["param_groups"][0]["params"]
    assert found["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.ranks
def test_a_model_flattened_beside_its_optimizer_is_told_apart(saved: Path) -> None:
    """torchtitan: all names stand at the top of the folder `step-N`."""
    found = described(saved / "titan")
    assert_same(found.weights, torch.load(saved / "full.pt"), saved / "titan")
    assert (found.step, found.scheduler) == (10, {"last_epoch": 10})
    optimizer = found.optimizers["optimizer"]
    moments = torch.load(saved / "moments.pt")
    assert optimizer["state"].keys() == moments["state"].keys()
    for name, slots in moments["state"].items():
        assert_same(optimizer["state"][name], slots, saved / "titan")
    (group,) = optimizer["param_groups"]
    assert (group["params"], group["lr"]) == (moments["param_groups"][0]["params"], 0.001)


@pytest.mark.ranks
def test_a_folder_is_read_without_torch(saved: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from registry.containers import FileSource, describe, read_folder
folder = Path({str(saved / "dcp")!r})
files = {{p.name: FileSource(os.open(p, os.O_RDONLY), p.name) for p in folder.iterdir()}}
print(len(describe(read_folder(files, "dcp"), files).weights), "torch" in sys.modules)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["11", "False"], "")


def test_every_piece_comes_from_its_place(tmp_path: Path) -> None:
    """Quarters of a matrix, and a tensor in three dimensions, by hand."""
    cube = torch.arange(24, dtype=torch.int16).reshape(2, 3, 4)
    values = {
        "w": [((0, 0), W[:2, :1]), ((0, 1), W[:2, 1:]), ((2, 0), W[2:, :1]), ((2, 1), W[2:, 1:])],
        "c": [((0, 0, 0), cube[:, :, :3]), ((0, 0, 3), cube[:, :, 3:])],
        "h": in_rows(W.to(torch.bfloat16), 3),
        "s": [((), torch.tensor(2.5))],
        "e": [((0, 0), torch.empty(0, 4))],
    }
    folder = write_dcp(tmp_path / "d", values)
    expected = {"w": W, "c": cube, "h": W.bfloat16(), "s": torch.tensor(2.5)}
    expected["e"] = torch.empty(0, 4)
    assert_same(described(folder).weights, expected, folder)
    contents = contents_of(folder)
    assert len({storage.key for storage in contents.storages}) == len(contents.storages)


def test_what_one_process_saved_is_in_one_piece(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": {"w": W, "n": torch.tensor(3)}}, checkpoint_id=tmp_path, no_dist=True)
    found = described(tmp_path)
    assert all(isinstance(t, Tensor) for t in found.weights.values())
    assert_same(found.weights, {"w": W, "n": torch.tensor(3)}, tmp_path)


def test_contents_say_which_files_were_used(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "d")
    contents = contents_of(write(folder, {"README.md": "x", "__2_0.distcp": b""}))
    assert contents.container == "dcp"
    assert contents.used_files == (".metadata", "__0_0.distcp", "__1_0.distcp")
    assert contents.size_bytes == sum((folder / n).stat().st_size for n in contents.used_files)


def test_the_recipe_with_one_stateful_app_is_unwrapped(tmp_path: Path) -> None:
    values = {"app.model.w": in_rows(W), "app.optim.x": 3, "epoch": 4}
    paths = {name: tuple(name.split(".")) for name in values}
    found = described(write_dcp(tmp_path / "d", values, paths=paths))
    assert (found.where, found.epoch) == ("model", 4)


def test_lists_are_put_together_in_their_order(tmp_path: Path) -> None:
    values = {"model.w": in_rows(W), "l.1": "b", "l.0": "a", "l.2.x": "c"}
    paths = {"model.w": ("model", "w"), "l.1": ("l", 1), "l.0": ("l", 0), "l.2.x": ("l", 2, "x")}
    assert contents_of(write_dcp(tmp_path / "d", values, paths=paths)).root["l"] == [
        "a", "b", {"x": "c"},
    ]  # fmt: skip


def test_meta_beside_it_makes_it_lightnings_by_hand(tmp_path: Path) -> None:
    """Lightning's layout by hand: state_dict and optimizer_0 in pieces, the rest in meta.pt."""
    values = {"state_dict.net.w": in_rows(W)}
    folder = write_dcp(tmp_path / "d", values, paths={"state_dict.net.w": ("state_dict", "net.w")})
    meta = {"epoch": 2, "global_step": 4, "pytorch-lightning_version": "2.6.0", "callbacks": {}}
    found = described(write(folder, {"meta.pt": torch_saved(meta)}))
    assert (found.epoch, found.step, found.layout) == (2, 4, "lightning")
    assert_same(found.weights, {"net.w": W}, folder)
    assert contents_of(folder).container == "lightning-sharded"


@pytest.mark.slow
def test_a_real_fabric_folder_is_read(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning isn't installed")
    script = Path(__file__).parent / "fabric_folder.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    found = described(tmp_path / "fabric")
    assert_same(found.weights, torch.load(tmp_path / "full.pt"), tmp_path / "fabric")
    assert found.epoch == 3
    assert contents_of(tmp_path / "fabric").container == "lightning-sharded"


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.ranks
def test_a_deleted_shard_is_named(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved / "dcp", tmp_path / "d")
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(DamagedError, match=r"'d' lacks 1 of its 2 files: '__1_0.distcp'") as caught:
        contents_of(folder)
    assert caught.value.hint == "copy __1_0.distcp from where it was saved, into d"


@pytest.mark.ranks
def test_a_folder_without_metadata_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved / "dcp", tmp_path / "d")
    (folder / ".metadata").rename(folder / ".metadata.tmp")
    with pytest.raises(DamagedError, match=r"lacks '.metadata'.*cut off before") as caught:
        contents_of(folder)
    assert "copy .metadata" in str(caught.value.hint)
    (folder / ".metadata.tmp").unlink()
    with pytest.raises(DamagedError, match=r"2 files of a DCP checkpoint \(__0_0.distcp, __1_0"):
        contents_of(folder)


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "d")
    path = folder / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"'d/__1_0.distcp' is cut short: 'model.w' ends at"):
        contents_of(folder)


def test_a_shard_of_another_save_is_refused(tmp_path: Path) -> None:
    folder = write(by_hand(tmp_path / "d"), {"__4_0.distcp": b"x"})
    with pytest.raises(ContainerError, match=r"holds '__4_0.distcp', of which '.metadata' knows"):
        contents_of(folder)


def test_several_steps_in_one_folder_are_a_choice(tmp_path: Path) -> None:
    for step in (5, 10):
        by_hand(tmp_path / "d" / f"step-{step}")
    with pytest.raises(AmbiguousError, match="step-10, step-5") as caught:
        contents_of(tmp_path / "d")
    assert caught.value.candidates == ("step-10", "step-5")


# --- parts alone ----------------------------------------------------------------------------------


@pytest.mark.ranks
@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_file_alone_is_refused_with_which_of_how_many(saved: Path, rank: int) -> None:
    with pytest.raises(ContainerError, match=rf"is part {rank + 1} of 2 of a model.*DTensor") as e:
        reading.contents_of(saved / f"rank{rank}.pt")
    assert "full_state_dict=True" in str(e.value.hint)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("__1_0.distcp", r"is what rank 1 wrote \(its file 1\) of a DCP checkpoint"),
        (".metadata", "is the index of a DCP checkpoint in 2 files, without them"),
    ],
)
def test_a_file_of_the_folder_alone_is_named(saved: Path, name: str, message: str) -> None:
    with pytest.raises(ContainerError, match=message) as caught:
        read(Whole((saved / "dcp" / name).read_bytes()), f"/data/my run/{name}")
    assert str(caught.value.hint).endswith("ckreg push '/data/my run'")


def test_a_file_with_one_piece_is_no_checkpoint_either(tmp_path: Path) -> None:
    """Its bytes are a torch.save stream as any other: only its name says what it is."""
    write_dcp(tmp_path, {"w": in_rows(W)})
    with pytest.raises(ContainerError, match="is what rank 1 wrote"):
        reading.contents_of(tmp_path / "__1_0.distcp")


# --- hostile folders ------------------------------------------------------------------------------


def moved(path: object = None, *, offset: Any = None, length: Any = None) -> Any:
    def change(metadata: Metadata) -> None:
        info = metadata.storage_data[MetadataIndex("model.w", (2, 0))]
        info.relative_path = info.relative_path if path is None else path
        info.offset = info.offset if offset is None else offset
        info.length = info.length if length is None else length

    return change


@pytest.mark.parametrize(
    "path",
    ["../other/__1_0.distcp", "/etc/passwd", "a/../../x", "..", "", "./__1_0.distcp", "a\\b",
     "__1_0.distcp\0", 7, b"__1_0.distcp", "x" * 5_000],
)  # fmt: skip
def test_a_path_out_of_the_folder_is_refused(path: object, tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "d", change=moved(path))
    write(tmp_path, {"other/__1_0.distcp": (folder / "__1_0.distcp").read_bytes()})
    with pytest.raises(UntrustedError, match="no file of this folder"):
        contents_of(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (moved("__9_0.distcp"), DamagedError, "lacks 1 of its 2 files: '__9_0.distcp'"),
        (moved(offset=1), DamagedError, "cut short"),
        (moved(length=2**62), DamagedError, "cut short"),
        (moved(offset=-1), DamagedError, "no sound range"),
        (moved(length=True), DamagedError, "no sound range"),
        (moved(length=2**70), DamagedError, "no sound range"),
        (moved(length=9), DamagedError, "no torch.save stream"),
        (moved("__0_0.distcp", offset=5, length=9), UntrustedError, "over another's bytes"),
    ],
)
def test_a_range_that_is_not_the_pieces_is_refused(
    change: Callable[[Metadata], None], error: type[CkregError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        contents_of(by_hand(tmp_path / "d", change=change))


def chunks(*given: tuple[tuple[int, ...], tuple[int, ...]], shape: Any = None) -> Any:
    def change(metadata: Metadata) -> None:
        about = metadata.state_dict_metadata["model.w"]
        about.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in given]
        about.size = about.size if shape is None else torch.Size(shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (chunks(((0, 0), (2, 3))), "have 6 elements, and its shape"),
        (chunks(((0, 0), (2, 3)), ((0, 0), (2, 3))), "overlap"),
        (chunks(((0, 0), (2, 3)), ((1, 0), (2, 3))), "overlap"),
        (chunks(((0, 0), (2, 3)), ((3, 0), (2, 3))), "outside of its shape"),
        (chunks(((0, 0), (2, 3)), ((2, 0), (3, 2))), "outside of its shape"),
        (chunks(((0, 0), (2, 3)), ((2,), (6,))), "outside of its shape"),
        (chunks(((0, 0), (2, 2)), ((2, 0), (2, 4)), shape=(4, 4)), "12 elements.* has 16"),
        (chunks(((0, 0), (3, 3)), ((3, 0), (1, 3))), r"doesn't say where 'model.w' at \(3, 0\) is"),
        (chunks(((0, 0), (2, 2)), ((2, 0), (2, 2)), shape=(4, 2)), "should be float32 of shape"),
        (chunks(((0, 0), (2**62, 2**62)), ((2, 0), (2, 3))), "outside of its shape"),
    ],
)
def test_pieces_that_do_not_make_the_whole_are_refused(
    change: Callable[[Metadata], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DamagedError, match=message):
        contents_of(by_hand(tmp_path / "d", change=change))


def test_another_dtype_in_a_piece_is_refused(tmp_path: Path) -> None:
    pieces = [((0, 0), W[:2]), ((2, 0), W[2:].int())]
    with pytest.raises(DamagedError, match=r"holds a int32 tensor .* should be float32"):
        contents_of(write_dcp(tmp_path, {"w": pieces}))


def test_something_else_where_a_piece_belongs_is_refused(tmp_path: Path) -> None:
    def change(metadata: Metadata) -> None:
        data = metadata.storage_data
        w, e = MetadataIndex("model.b", (0,)), MetadataIndex("epoch")
        data[w], data[e] = data[e], data[w]

    with pytest.raises(ContainerError, match=r"no dense tensor .* 'model.b' should be"):
        contents_of(by_hand(tmp_path, change=change))


def test_a_piece_that_was_transformed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"passed through \('zstd',\)") as caught:
        contents_of(by_hand(tmp_path, transform_descriptors=["zstd"]))
    assert "save it without" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"a": ("x",), "b": ("x",)}, "two values at"),
        ({"a": ("x",), "b": ("x", "y")}, "inside another value"),
        ({"a": ("x", "y"), "b": ("x",)}, "two values at"),
        ({"a": ("x", 0), "b": ("x", 2)}, "list with holes"),
        ({"a": ("x", 2**60), "b": ("y",)}, "list with holes"),
        ({"a": ("x", 0), "b": ("x", "y")}, "list with holes"),
        ({"a": (0,), "b": (1,)}, "describes a list"),
        ({"a": ("x", -1), "b": ("y",)}, "no sound path"),
        ({"a": (), "b": ("y",)}, "no sound path"),
        ({"a": ("x",) * 65, "b": ("y",)}, "no sound path"),
        ({"a": (True,), "b": ("y",)}, "no sound path"),
    ],
)
def test_paths_that_make_no_state_dict_are_refused(
    paths: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DamagedError, match=message):
        contents_of(write_dcp(tmp_path, {"a": 1, "b": 2}, paths=paths))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_code_in_metadata_or_in_a_value_never_runs(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    folder = write_dcp(tmp_path / "d", {"w": in_rows(W), "evil": Canary(canary)})
    contents = contents_of(folder)
    assert any(isinstance(n, Opaque) and n.name == "builtins.exec" for n in walk(contents.root))
    assert contents.unsafe_globals == ("builtins.exec",)

    def change(metadata: Metadata) -> None:
        metadata.planner_data = Canary(canary)

    contents_of(by_hand(tmp_path / "planner", change=change))
    for evil in (Canary(canary), {"state_dict_metadata": Canary(canary)}):
        write(folder, {".metadata": pickle.dumps(evil)})
        with pytest.raises(DamagedError, match="something else where a Metadata belongs"):
            contents_of(folder)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


class Stranger:
    pass


def test_a_class_that_is_not_torchs_is_refused_in_its_place(tmp_path: Path) -> None:
    def change(metadata: Metadata) -> None:
        info = Stranger()
        info.__dict__.update(relative_path="__1_0.distcp", offset=0, length=1)
        metadata.storage_data[MetadataIndex("model.w", (2, 0))] = info

    with pytest.raises(DamagedError, match="something else where a _StorageInfo belongs"):
        contents_of(by_hand(tmp_path, change=change))


def test_a_name_that_nothing_describes_is_refused(tmp_path: Path) -> None:
    def change(metadata: Metadata) -> None:
        metadata.storage_data[MetadataIndex("ghost")] = _StorageInfo("__0_0.distcp", 0, 0)

    with pytest.raises(DamagedError, match="places 'ghost'"):
        contents_of(by_hand(tmp_path, change=change))


def test_metadata_cut_short_is_named(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "d")
    data = (folder / ".metadata").read_bytes()
    for cut in range(40, len(data), 97):
        write(folder, {".metadata": data[:cut]})
        with pytest.raises(DamagedError, match=r"'d/.metadata'"):
            contents_of(folder)
    write(folder, {".metadata": data + b"N."})
    with pytest.raises(UntrustedError, match="ends at byte"):
        contents_of(folder)


def test_pieces_without_number_side_by_side_are_refused_in_time(tmp_path: Path) -> None:
    """Long rows beside long columns: on either axis, half of the pieces reach as far."""
    rows = [((i, 0), (1, 2_000)) for i in range(2_000)]
    columns = [((0, 2_000 + i), (2_000, 1)) for i in range(2_000)]
    folder = by_hand(tmp_path, change=chunks(*rows, *columns, shape=(2_000, 4_000)))
    start = time.monotonic()
    with pytest.raises(UntrustedError, match="too many pieces"):
        contents_of(folder)
    assert time.monotonic() - start < 10


def test_a_grid_of_many_pieces_costs_no_comparison() -> None:
    cells = tuple(((i, j), (1, 1)) for i in range(150) for j in range(150))
    assert check_cover(Pieces("float32", (150, 150), cells), "w") == 0


def test_pieces_that_are_no_grid_are_compared() -> None:
    bricks = (((0, 0), (1, 2)), ((0, 2), (1, 2)), ((1, 0), (1, 1)), ((1, 1), (1, 3)))
    assert check_cover(Pieces("float32", (2, 4), bricks), "w") > 0
    overlapping = (((0, 0), (1, 2)), ((0, 2), (1, 2)), ((1, 0), (1, 3)), ((1, 2), (1, 1)))
    with pytest.raises(DamagedError, match="overlap"):
        check_cover(Pieces("float32", (2, 4), overlapping), "w")


def test_mutants_give_an_error_or_what_was_saved(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "d")
    files, rng = files_of(folder), random.Random(4)
    read_well = 0
    for _ in range(400):
        name = rng.choice([".metadata", "__0_0.distcp", "__1_0.distcp"])
        data = bytearray(files[name].data)
        match rng.randrange(3):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                at = rng.randrange(len(data))
                data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(40)]
        with contextlib.suppress(CkregError):
            read_folder({**files, name: Whole(bytes(data))}, "d")
            read_well += 1
    assert 0 < read_well < 400


def test_a_value_may_hold_tensors_of_its_own(tmp_path: Path) -> None:
    """What a planner doesn't take apart is one torch.save stream, tensors and all."""
    inner = {"state": {0: {"m": W[1].clone()}}, "param_groups": [{"params": [0]}]}
    folder = write_dcp(tmp_path, {"model.w": in_rows(W), "optimizer": inner},
                       paths={"model.w": ("model", "w")})  # fmt: skip
    found = described(folder).optimizers["optimizer"]
    assert torch.equal(built(found["state"][0]["m"], folder), W[1])
    assert found["state"][0]["m"].storage.offset > 1_000  # in the file, not in the stream


def test_folders_of_other_containers_are_not_taken_for_dcp(tmp_path: Path) -> None:
    out = io.BytesIO()
    torch.save({"w": W}, out)
    write(tmp_path, {"best.pt": out.getvalue(), "log.txt": "x"})
    assert contents_of(tmp_path).container == "torch-zip"
