"""What is given as weights and is none: each kind is called by its name, and nothing of it runs."""

import gzip
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from robusttrain.core.errors import FileError
from robusttrain.storage.reading import read_content

STATE = {"weight": torch.ones(2, 3)}
STARTS = {
    "a web page": b"\n<!DOCTYPE html><html><title>Virus scan warning</title></html>",
    "a web page that was": b"<?xml version='1.0'?>\n<HTML><body>404</body></HTML>",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(64),
    "one array of numpy": b"\x93NUMPY\x01\x00" + bytes(64),
    "text, not weights: it begins with 'Invalid username": b"Invalid username or password.",
    "an index of weights in several files": b'{"metadata": {}, "weight_map": {"a": "b"}}',
    "with gzip: unpack": gzip.compress(b"x" * 100),
    "a truncated archive": b"PK\x03\x04" + bytes(200),
    "is empty": b"",
    "a truncated or damaged one": b"\x80\x02\x8a",
}


def refused(path, said):
    with pytest.raises(FileError, match=said) as caught:
        read_content(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("said", STARTS)
def test_other_files_are_called_by_their_name(tmp_path, said, suffix):
    (tmp_path / f"w{suffix}").write_bytes(STARTS[said])
    refused(tmp_path / f"w{suffix}", said if suffix == ".pth" else f"{said}|is not a safetensors")


def test_archives_that_hold_weights(tmp_path):
    torch.save(STATE, tmp_path / "best.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "best.pth", "run/best.pth")
        file.write(tmp_path / "best.pth", "run/last.pth")
    refused(tmp_path / "a.zip", "a zip archive that holds run/best.pth and 1 more: unpack it")
    with tarfile.open(tmp_path / "a.pth.tar", "w") as file:
        file.add(tmp_path / "best.pth", "run/best.pth")
    refused(tmp_path / "a.pth.tar", "a tar archive that holds run/best.pth: unpack it")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("readme.txt", "nothing")
    refused(tmp_path / "b.zip", "a zip archive in which no file of weights lies")
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    refused(tmp_path / "a.npz", "arrays of numpy: .*safetensors.numpy.save_file")


def test_networks_with_their_code(tmp_path):
    torch.save({"model": nn.Sequential(nn.Linear(2, 2)), "epoch": 3}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "a whole pickled network .*none of it ran: .*model.state_dict")
    with warnings.catch_warnings():  # newer versions of torch call TorchScript deprecated
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "b.pt")
    refused(tmp_path / "b.pt", "a TorchScript archive, .*not run")


def test_a_sharded_checkpoint_is_a_folder(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    refused(tmp_path, "dcp_to_torch_save")


def test_bytes_decide_not_names(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "a.bin")
    torch.save(STATE, tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        assert torch.equal(read_content(tmp_path / name)["weight"], STATE["weight"])
