"""Reading and writing of weights. Files from elsewhere are hostile: nothing in them runs, and every
misfit is named.

We write safetensors, which holds only numbers and text. We also read what ``torch.save`` wrote,
with ``weights_only=True``: a pickle that would need code to load is refused before any of it runs.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robusttrain.core.errors import OptionError, UserError
from robusttrain.storage.files import write_whole

# Where training scripts keep the state dict inside a checkpoint (Lightning's own comes first).
CHECKPOINT_KEYS = ("state_dict", "model", "net")
# What DataParallel and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, a state dict, or a checkpoint that holds one, on the CPU.

    Args:
        path: a file. ``.safetensors`` is read as such, everything else by `read_torch`.

    Raises:
        UserError: there is no such file, it is damaged, needs code to load, or holds no state dict.
    """
    path = Path(path)
    tensors = _state_dict(
        _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path), path
    )
    _refuse_hollow(tensors, path)
    while wrapper := next(
        (wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in tensors)), None
    ):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote, on the CPU, as far as it can be had without running code.

    Raises:
        UserError: there is no such file, it is damaged, or it needs code to load.
    """
    path = _existing(path)
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            # torch.save stores; a compressed file could unpack to any size
            with zipfile.ZipFile(path) as file:
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
            if packed:
                raise UserError(
                    f"{path} is a compressed archive, which torch.save does not write: unpack it"
                    " first"
                )
        with path.open("rb") as file:
            pickled = archive or file.read(1) == b"\x80"
        # About TorchScript and pickle protocols: both end in the errors below
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {_line(error)}") from error
    # Damaged bytes fail in any class, KeyError and RuntimeError included
    except Exception as error:
        code = isinstance(error, pickle.UnpicklingError) and (pickled or "GLOBAL" in str(error))
        if code or "TorchScript" in str(error):
            raise UserError(
                f"{path} needs code to load, so it was refused and none of it ran: save a plain"
                " state_dict (torch.save(model.state_dict(), path)) or a safetensors file"
            ) from error
        raise UserError(
            f"{path} is not a file of torch.save, or a truncated or damaged one"
        ) from error


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load all weights of ``module`` from a file, or none: `read_tensors`, then `fit_state`."""
    fit_state(module, read_tensors(path), path)


def fit_state(module: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load ``state``, which came from the file ``path``, if names and shapes are the module's and
    values are finite.

    Only ``num_batches_tracked`` may be missing, a counter that older files lack and evaluation does
    not read.

    Raises:
        UserError: it does not fit (naming up to three tensors) or holds NaN or infinity; the module
            is unchanged.
    """
    _refuse_hollow(state, path)
    own = module.state_dict()
    differences = [
        f"{_show(name)} is missing"
        for name in own
        if name not in state and name.rpartition(".")[2] != "num_batches_tracked"
    ]
    differences += [f"{_show(name)} is not in the model" for name in state if name not in own]
    for name in (name for name in own if name in state):  # in the model's order
        theirs, ours = state[name], own[name]
        if theirs.shape != ours.shape:
            differences.append(
                f"{_show(name)} is {tuple(theirs.shape)} in the file, {tuple(ours.shape)} in the"
                " model"
            )
        elif _kind(theirs) != _kind(ours):
            differences.append(
                f"{_show(name)} is {theirs.dtype} in the file, {ours.dtype} in the model"
            )
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(differences[:3])}{more}"
        )
    for name, tensor in state.items():
        # As the model will hold it: 1e39 is finite in float64 only.
        if tensor.is_floating_point() and not tensor.to(own[name].dtype).isfinite().all():
            raise UserError(f"{path}: the tensor {_show(name)} holds NaN or infinity")
    module.load_state_dict(dict(state), strict=True)


def save_tensors(
    module_or_state: nn.Module | dict[str, Tensor],
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a state dict as safetensors, whole or not at all; tensors that share memory are written
    one by one.

    Args:
        module_or_state: a module, or its state dict.
        path: ends in ``.safetensors``; folders are made as needed, a file that is there is
            replaced.
        metadata: text to keep beside the tensors, see `read_metadata`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(
            "path", str(path), "must end in .safetensors, by which it is told from a pickle"
        )
    state = (
        module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    )
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    content = safetensors.torch.save(tensors, metadata=dict(metadata or {}))
    write_whole(path, content)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that `save_tensors` kept beside the tensors of a .safetensors file; empty if there
    is none.
    """
    path = _existing(path)
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a safetensors file, or a damaged one ({_line(error)})"
        ) from error


def _existing(path: str | os.PathLike[str]) -> Path:
    """The path of a file that has something in it."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file with weights")
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _existing(path)
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a safetensors file, or a damaged one ({_line(error)})"
        ) from error


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict that ``content`` is, or holds."""
    if isinstance(content, dict):
        for candidate in (content, *(content.get(key) for key in CHECKPOINT_KEYS)):
            if (
                isinstance(candidate, dict)
                and candidate
                and all(
                    isinstance(name, str) and isinstance(value, Tensor)
                    for name, value in candidate.items()
                )
            ):
                return {name: value.detach() for name, value in candidate.items()}
        found = f"a dict of {', '.join(_show(key) for key in list(content)[:3]) or 'nothing'}"
    else:
        found = type(content).__name__
    raise UserError(
        f"{path} holds no state dict (names to tensors), also not under state_dict, model or net:"
        f" {found}"
    )


def _refuse_hollow(tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """A few bytes can claim to be a tensor of any size, or one of another kind: stride 0, sparse,
    meta.
    """
    for name, tensor in tensors.items():
        real = (
            tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
        )
        if not real or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{path}: the tensor {_show(name)} is not a plain array of the values in the file"
            )


def _kind(tensor: Tensor) -> str:
    """What a cast must not change silently: whether values are fractions, whole or complex."""
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def _show(name: object) -> str:
    """A name from a file as one short line, whatever is in it."""
    return ascii(str(name)[:80])[1:-1]


def _line(error: Exception) -> str:
    """The first line of an error, cut short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
