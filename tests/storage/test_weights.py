"""Weights from elsewhere: what loads, what is refused, and that no code of a file ever runs."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from robusttrain.core.errors import FileError, OptionError, UserError
from robusttrain.models import VGGSmall
from robusttrain.models.foreign import load_weights
from robusttrain.storage.files import hash_of_tensors
from robusttrain.storage.reading import read_torch
from robusttrain.storage.weights import fit_state, read_metadata, read_tensors, save_tensors


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(path: Path, pattern: str, module: nn.Module | None = None) -> None:
    """One line that names the path; the module, if any, keeps its weights."""
    before = (
        {name: tensor.clone() for name, tensor in module.state_dict().items()} if module else {}
    )
    with pytest.raises(UserError, match=pattern) as caught:
        load_weights(module, path) if module else read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not module or same(before, module.state_dict())


@pytest.mark.parametrize("key", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_state_dicts_and_checkpoints_load(tmp_path, key, prefix):
    source, target = small(0), small(1)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save(state if key is None else {"epoch": 3, "lr": [0.1], key: state}, tmp_path / "a.ckpt")
    load_weights(target, tmp_path / "a.ckpt")
    assert same(source.state_dict(), target.state_dict())


def test_the_old_format_and_a_missing_counter_load(tmp_path):
    source, target = small(0), small(1)
    state = {
        name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "a.pth")
    assert same(source.state_dict(), target.state_dict())


def test_a_prefix_on_some_names_only_is_kept(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pt")
    assert set(read_tensors(tmp_path / "a.pt")) == {"module.a", "b"}


def test_saved_weights_come_back_exactly_with_their_metadata(tmp_path):
    path = tmp_path / "new" / "f_b.safetensors"
    source, target = VGGSmall(image_size=16), VGGSmall(image_size=16)
    source.to(memory_format=torch.channels_last)  # not contiguous in the usual sense
    save_tensors(source, path, {"class_path": "robusttrain.models.VGGSmall", "note": "é"})
    load_weights(target, path)
    assert same(source.state_dict(), target.state_dict())
    assert read_metadata(path) == {"class_path": "robusttrain.models.VGGSmall", "note": "é"}
    assert [file.name for file in path.parent.iterdir()] == ["f_b.safetensors"]


def test_a_folder_in_another_encoding_is_read(tmp_path):
    """As of an old archive: with names in Latin-1."""
    path = tmp_path / os.fsdecode(b"caf\xe9") / "w.safetensors"
    save_tensors(small(), path, {"about": "it"})
    assert same(read_tensors(path), small().state_dict())
    assert read_metadata(path) == {"about": "it"}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileError, match="truncated or damaged one: fetch it again"):
        read_tensors(path)


def test_shared_tensors_are_written_one_by_one(tmp_path):
    shared = torch.arange(6.0)
    save_tensors({"a": shared, "b": shared, "c": shared[::2]}, tmp_path / "a.safetensors", {})
    read = read_tensors(tmp_path / "a.safetensors")
    assert read["a"].tolist() == read["b"].tolist() == list(range(6))
    assert read["c"].tolist() == [0, 2, 4]
    assert read_metadata(tmp_path / "a.safetensors") == {}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.ones(2)}, path, {})

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_tensors({"a": torch.zeros(2)}, path, {})
    assert read_tensors(path)["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.safetensors"):
        save_tensors({"a": torch.ones(2)}, tmp_path / "a.pth", {})


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw2", "raw4", "raw0"])
def test_code_is_refused_and_does_not_run(tmp_path, kind):
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    content = {"state_dict": {"weight": torch.ones(1)}, "extra": Evil(marker)}
    if kind.startswith("raw"):
        path.write_bytes(pickle.dumps({"extra": Evil(marker)}, protocol=int(kind[3])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    told = (
        r"needs code to load( \([\w.]+\))?, so it was refused and none of it ran: save a plain"
        " state_dict: .*safetensors"
    )
    # Protocol 0 looks like any text
    refused(path, told if kind != "raw0" else "is text, not weights")
    assert not marker.exists()
    (
        torch.load(path, weights_only=False)
        if not kind.startswith("raw")
        else pickle.loads(path.read_bytes())
    )
    assert marker.exists(), "the file is harmless, so that this test proves nothing"


def test_a_whole_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "needs code to load")


def test_files_that_are_not_there_or_are_damaged(tmp_path):
    refused(tmp_path / "none.pth", "there is no such file")
    refused(tmp_path, "is a folder")
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"")
        refused(path, "is empty")
        path.write_bytes(b"<html>404 Not Found</html>")
        refused(path, "is a web page that was saved under this name")
        (
            save_tensors(small(), path, {})
            if suffix == ".safetensors"
            else torch.save(small().state_dict(), path)
        )
        whole = path.read_bytes()
        for size in (10, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:size])
            refused(path, "damaged|a truncated archive")


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"a": 1}, {"state_dict": {"a": "text"}}, {3: torch.ones(1)}]
)
def test_what_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds no state dict")


def test_tensors_that_claim_more_than_the_file_holds(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**12)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "the tensor a is not a plain array")
    torch.save({"a": torch.ones(3).to_sparse()}, tmp_path / "b.pt")
    refused(tmp_path / "b.pt", "the tensor a is not a plain array")


def test_compressed_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"0" * 10**6)
    refused(tmp_path / "a.pt", "compressed archive")


def test_differences_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    state = small().state_dict()
    save_tensors({name: tensor for name, tensor in state.items() if name != "0.bias"}, path, {})
    refused(path, r"does not fit Sequential: 0\.bias is missing$", small(1))
    save_tensors(state | {"head.bias": torch.ones(1)}, path, {})
    refused(path, r": head\.bias is not in the model$", small(1))
    save_tensors(state | {"0.weight": torch.ones(4, 3, 5, 5)}, path, {})
    refused(
        path, r": 0\.weight is \(4, 3, 5, 5\) in the file, \(4, 3, 3, 3\) in the model$", small(1)
    )
    save_tensors(state | {"0.bias": torch.ones(4, dtype=torch.int64)}, path, {})
    refused(path, r": 0\.bias is torch\.int64 in the file, torch\.float32 in the model$", small(1))
    save_tensors({"x": torch.ones(1)}, path, {})
    refused(
        path, r": its names are x \(1 in all\), the network's 0\.weight, .* \(7 in all\)$", small(1)
    )
    with pytest.raises(
        UserError,
        match=r"0\.bias is missing; 1\.weight is missing; 1\.bias is missing, and 2 more$",
    ):
        fit_state(small(1), {"0.weight": state["0.weight"]}, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_values_that_are_not_finite(tmp_path, value):
    state = small().state_dict()
    state["1.running_var"] = torch.tensor([1, 1, value, 1], dtype=torch.float64)
    torch.save(state, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"the tensor 1\.running_var holds NaN or infinity", small(1))


def test_a_name_with_line_breaks_makes_one_line(tmp_path):
    torch.save({"a\n\x1b[31mb": torch.ones(1)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"a\\n\\x1b\[31mb \(1 in all\)", nn.ReLU())


def test_metadata_of_another_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"hello, this is no such file")
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_metadata(tmp_path / "a.safetensors")


def test_a_fingerprint_knows_values_and_shapes_and_no_strides():
    whole = torch.arange(6).reshape(2, 3)
    for one, other in (
        (whole[:, 1], torch.tensor([1, 4])),
        (whole[:1, 1], torch.tensor([1])),  # one element counts as contiguous
        (whole.T, torch.tensor([[0, 3], [1, 4], [2, 5]])),
        (torch.tensor(3.0), torch.tensor(3.0)),
    ):
        assert hash_of_tensors({"a": one}) == hash_of_tensors({"a": other})
    assert hash_of_tensors({"a": whole}) != hash_of_tensors({"a": whole.reshape(3, 2)})
    assert hash_of_tensors({"a": whole}) != hash_of_tensors({"a": whole.T})
    assert hash_of_tensors({"a": torch.zeros(0, 2)}) != hash_of_tensors({"a": torch.zeros(2, 0)})


def test_bytes_that_changed_in_the_middle_are_noticed(tmp_path):
    """torch reads archives without looking at their checksums."""
    state = {f"layer.{n}": torch.arange(4096.0) + n for n in range(3)}
    torch.save(state, tmp_path / "whole.pth")
    content = bytearray((tmp_path / "whole.pth").read_bytes())
    place = len(content) // 2
    content[place : place + 3] = bytes(each ^ 0xFF for each in content[place : place + 3])
    (tmp_path / "changed.pth").write_bytes(content)
    loaded = torch.load(tmp_path / "changed.pth", weights_only=True)
    assert any((loaded[name] != values).any() for name, values in state.items())
    with pytest.raises(FileError, match="is damaged: what it holds as .*/data/1 does not have its"):
        read_torch(tmp_path / "changed.pth")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("whole", "without"):
        read = read_torch(tmp_path / f"{name}.pth")
        assert all(torch.equal(read[key], values) for key, values in state.items())
