"""Files that were given as weights and are not: their kinds, and what to do."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

from robusttrain.core.errors import show

SAVE = "torch.save(model.state_dict(), path), or a safetensors file"
DAMAGED = "a truncated or damaged one: fetch it again"
#: The first bytes of other kinds of files; what such a file is, and what to do.
OTHERS = (
    (
        b"version https://git-lfs",
        "is a pointer of git-lfs, not the file that it stands for: git lfs pull",
    ),
    (
        b"\x89HDF\r\n",
        "is an HDF5 file, as Keras and TensorFlow write it: load it there and write its arrays,"
        " under the names of the PyTorch network, with safetensors.numpy.save_file",
    ),
    (
        b"\x93NUMPY",
        "is one array of numpy without a name: write a dict of names to arrays with"
        " safetensors.numpy.save_file",
    ),
    (b"GGUF", "is a GGUF file, whose weights are quantised: take the original's safetensors"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
)
#: How an ONNX model begins: its version, then one of the fields that follow in practice.
ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]")
HTML = re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype|html|head|body)", re.I | re.S)
WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar", ".h5", ".onnx", ".npz")


def misfit(path: Path) -> str | None:
    """What a file is, and what to do; None if it may be a file of ``torch.save``."""
    with path.open("rb") as file:
        start = file.read(1024)
    # Before zip: a tar archive whose last file is a zip archive ends like one
    if start[257:262] == b"ustar" and tarfile.is_tarfile(path):
        with tarfile.open(path) as file:
            held = [name for name in file.getnames()[:1000] if name.endswith(WEIGHTS)]
        return _unpack("tar", held)
    if zipfile.is_zipfile(path):
        return _archive(path)
    if start[:4] == b"PK\x03\x04":
        return "is a truncated archive: fetch it again"
    for first, kind in OTHERS:
        if start.startswith(first):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if HTML.match(text):
        return (
            "is a web page that was saved under this name, not weights: open it in a browser to"
            " see what the server wanted, and fetch the file itself"
        )
    if ONNX.match(start) or path.suffix == ".onnx":
        return "is an ONNX model, which is a graph: take the state_dict that it was exported from"
    if start[:1] != b"\x80" and (readable := _text(start)):
        if readable.startswith("{") and '"weight_map"' in readable:
            return "is an index of weights in several files: join them in one file first"
        return f"is text, not weights: it begins with {readable[:40]!r}"
    return None


def _archive(path: Path) -> str | None:
    """`misfit` for a zip archive, the form in which ``torch.save`` writes."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"is not a file of torch.save, or {DAMAGED}"
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        return f"is a TorchScript archive, which holds code and is not run: save {SAVE}"
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        if names and all(name.endswith(".npy") for name in names):
            return (
                "holds arrays of numpy: write them with safetensors.numpy.save_file, under the"
                " names of the PyTorch network"
            )
        if "model.weights.h5" in names:
            return "is a Keras model: write its arrays with safetensors.numpy.save_file"
        return _unpack("zip", [name for name in names if name.endswith(WEIGHTS)])
    # torch.save stores; a compressed file could unpack to any size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "is a compressed archive, which torch.save does not write: unpack it first"
    return None


def _unpack(kind: str, held: list[str]) -> str:
    if not held:
        return f"is a {kind} archive in which no file of weights lies"
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    return f"is a {kind} archive that holds {show(held[0])}{more}: unpack it, and give that file"


def _text(start: bytes) -> str:
    """The beginning of a text; empty for other bytes."""
    try:
        text = start[:200].decode("ascii").strip()
    except UnicodeDecodeError:
        return ""
    return (
        text if len(text) > 3 and all(sign.isprintable() or sign.isspace() for sign in text) else ""
    )
