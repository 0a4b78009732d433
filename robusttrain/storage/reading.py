"""Opens files of weights from elsewhere. Nothing in them runs, and other files are named as such.

Safetensors hold only numbers and text. A file of ``torch.save`` is read with ``weights_only=True``:
a pickle that would need code to load is refused before any of it runs. A file's bytes decide which
of the two it is, not its name.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from robusttrain.core.errors import FileError, first_line, show
from robusttrain.storage import packaged
from robusttrain.storage.kinds import DAMAGED, SAVE, misfit


class Inert:
    """Stands for an object of a harmless kind beside the weights, which is not made."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def inert_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    """Stands for a ``defaultdict``, whose items follow."""
    return OrderedDict()


#: Kinds of objects that training scripts keep beside the weights: settings, and numbers of numpy.
#: These classes are not even imported.
HARMLESS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        f"numpy.dtypes.{name}DType"
        for name in ("Float16", "Float32", "Float64", "Int32", "Int64", "UInt8", "Bool")
    ),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata", "omegaconf.nodes.AnyNode"),
)
#: Mappings, read as ordinary ones.
HARMLESS_MAPPINGS = (
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
#: Types that a ``defaultdict`` may name, and dtypes: as arguments only.
NAMES = ("builtins.int", "builtins.float", "builtins.list", "builtins.dict", "builtins.str")


def read_content(path: str | os.PathLike[str]) -> Any:
    """All that a file of weights holds, on the CPU: safetensors as a dict, else as `read_torch`.

    Raises:
        FileError: as for `read_torch`.
    """
    path = existing(path)
    with _readable(path), path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and header < 10**9:
        return read_safetensors(path)
    if path.suffix == ".safetensors" and start[:2] != b"PK" and start[:1] != b"\x80":
        raise FileError(path, misfit(path) or "is not a safetensors file, or a damaged one")
    return read_torch(path)


def read_torch(path: str | os.PathLike[str]) -> Any:
    """The content of a file of ``torch.save``, on the CPU, read without running code.

    Objects of `HARMLESS` kinds beside the weights become `Inert`.

    Raises:
        FileError: there is no such file, it is damaged, of another kind, or it needs code to load.
    """
    path = existing(path)
    with _readable(path):
        other = misfit(path)
        archive = zipfile.is_zipfile(path)
        with path.open("rb") as file:
            pickled = archive or file.read(1) == b"\x80"
    if other is None and archive and (record := damaged_record(path)) is not None:
        other = f"is damaged: what it holds as {record} does not have its checksum: fetch it again"
    if other:
        raise FileError(path, other)
    aliases: list[Any] = [(Inert, name) for name in (*HARMLESS, *NAMES)]
    aliases += [(OrderedDict, name) for name in HARMLESS_MAPPINGS]
    aliases.append((inert_dict, "collections.defaultdict"))
    try:
        # torch warns of TorchScript and pickle protocols; both end in the errors below
        with warnings.catch_warnings(), torch.serialization.safe_globals(aliases):
            warnings.simplefilter("ignore")
            # As an open file: of a path, torch would look at the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    # Damaged bytes fail in any class, KeyError and RuntimeError included
    except Exception as error:
        code = isinstance(error, pickle.UnpicklingError) and (pickled or "GLOBAL" in str(error))
        raise FileError(
            path,
            _needs_code(path, str(error)) if code else f"is not a file of torch.save, or {DAMAGED}",
        ) from error


def damaged_record(path: Path) -> str | None:
    """The name of a part of an archive whose content is not that of its checksum; None where all
    have theirs. torch itself does not look, and would load whatever is there.

    An archive in which no checksum of several fits was saved without them
    (``torch.serialization.set_crc32_options``).
    """
    wrong, fits = None, False
    try:
        with zipfile.ZipFile(path) as whole:
            for each in whole.infolist():
                try:
                    with whole.open(each) as part:
                        while part.read(2**20):
                            pass
                    fits = fits or bool(each.file_size)
                except zipfile.BadZipFile:
                    wrong = wrong or each.filename
                if wrong and fits:
                    return wrong
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError):
        return None  # torch says what is wrong with it
    return None


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        FileError: the file is no safetensors file, or a damaged one.
    """
    path = existing(path)
    try:
        if not in_unicode(path):
            return safetensors.torch.load(path.read_bytes())
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise FileError(
            path, f"is not a safetensors file, or {DAMAGED} ({first_line(error)})"
        ) from error


def in_unicode(path: Path) -> bool:
    """Whether the library of safetensors can open a path: not one with a name in another encoding,
    as of an old archive.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def existing(path: str | os.PathLike[str]) -> Path:
    """The path, if it is that of a file with content; of a packaged model that of its weights.

    Raises:
        FileError: there is no such file, or it is empty.
    """
    if packaged.is_packaged(path):
        return packaged.card(path).weights()
    path = Path(path)
    if path.is_dir():
        if any(path.glob("*.distcp")):
            raise FileError(
                path,
                "is a sharded checkpoint of torch.distributed: make one file of it with"
                " torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
            )
        raise FileError(path, "is a folder: give a file with weights")
    if not path.exists():
        raise FileError(path, f"there is no such file{packaged.hint(path)}")
    if not path.is_file():  # a pipe would wait for ever
        raise FileError(path, "is not a regular file")
    if path.stat().st_size == 0:
        raise FileError(path, "is empty: fetch it again")
    return path


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one line."""
    try:
        yield
    except OSError as error:
        raise FileError(path, f"cannot be read: {first_line(error)}") from error


def _needs_code(path: Path, message: str) -> str:
    """The refusal of a pickle that names code."""
    if "torch.distributed" in message:
        return (
            "holds weights in shards of several processes: gather them first"
            " (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict)"
        )
    match = re.search(r"(?:GLOBAL|for) ([\w.]+\.\w+)", message)
    first = f" ({show(match[1])})" if match else ""
    refused = "so it was refused and none of it ran"
    if _is_module(path):
        return (
            f"holds a whole pickled network{first} and needs code to load, {refused}: where its"
            f" classes are at hand and you trust it, save a plain state_dict: {SAVE}"
        )
    return f"needs code to load{first}, {refused}: save a plain state_dict: {SAVE}"


def _is_module(path: Path) -> bool:
    """Whether a pickle names classes of networks; nothing of the pickle runs."""
    try:
        with path.open("rb") as file:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    # Damaged, or of the old format
    except (pickle.UnpicklingError, struct.error, RuntimeError, ValueError, EOFError, LookupError):
        return False
    return any(name.startswith("torch.nn.modules.") for name in names)
