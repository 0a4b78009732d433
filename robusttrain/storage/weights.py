"""Writes weights and reads them back; errors name every misfit.

`robusttrain.storage.reading` opens files. `robusttrain.models.foreign` loads other people's files,
with all that lies around their weights.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robusttrain.core.errors import FileError, OptionError, first_line, show
from robusttrain.storage.files import write_whole
from robusttrain.storage.reading import existing, in_unicode, read_content


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file that holds nothing else, safetensors or a state dict, on the CPU.

    Raises:
        FileError: there is no such file, it is damaged, needs code to load, or holds no state dict.
    """
    path = Path(path)
    content = read_content(path)
    plain = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not plain or not content:
        raise FileError(path, f"holds no state dict (names to tensors): {described(content)}")
    tensors = {name: value.detach() for name, value in content.items()}
    refuse_hollow(tensors, path)
    return tensors


def read_own(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file that a run of this package left, and the text beside them.

    Raises:
        FileError: there is no such file, or it is damaged. Nobody else has it, so there is nowhere
            to fetch it again: it has to be made again.
    """
    path = Path(path)
    try:
        return read_tensors(path), read_metadata(path)
    except FileError as error:
        if not path.is_file():
            raise
        raise FileError(path, "is damaged, or another file: evaluate again") from error


def described(content: object) -> str:
    """The content of a file, in a few words."""
    if isinstance(content, dict):
        return f"a dict of {', '.join(show(key) for key in list(content)[:5]) or 'nothing'}"
    if isinstance(content, list | tuple) and content:
        kinds = sorted({type(item).__name__ for item in content[:100]})
        return f"{len(content)} values without names ({', '.join(kinds[:3])})"
    return type(content).__name__


def fit_state(module: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load ``state``, from the file ``path``, if names and shapes are the module's and values are
    finite.

    Only ``num_batches_tracked`` may be missing: older files lack this counter, and evaluation does
    not read it.

    Raises:
        FileError: as for `check_state`; the module is unchanged.
    """
    check_state(module, state, path)
    module.load_state_dict(dict(state), strict=True)


def check_state(module: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Compare a state dict with a module's own; the module is left alone.

    Raises:
        FileError: the state dict does not fit (the error names up to three tensors), or holds NaN
            or infinity.
    """
    refuse_hollow(state, path)
    own = module.state_dict()
    differences = [
        f"{show(name)} is missing"
        for name in own
        if name not in state and name.rpartition(".")[2] != "num_batches_tracked"
    ]
    differences += [f"{show(name)} is not in the model" for name in state if name not in own]
    for name in (name for name in own if name in state):  # in the model's order
        theirs, ours = state[name], own[name]
        if theirs.shape != ours.shape:
            differences.append(
                f"{show(name)} is {tuple(theirs.shape)} in the file, {tuple(ours.shape)} in the"
                " model"
            )
        elif kind_of(theirs) != kind_of(ours):
            differences.append(
                f"{show(name)} is {theirs.dtype} in the file, {ours.dtype} in the model"
            )
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise FileError(
            path, f"does not fit {type(module).__name__}: {'; '.join(differences[:3])}{more}"
        )
    for name, tensor in state.items():
        # In the model's type: 1e39 is finite in float64 only.
        if tensor.is_floating_point() and not tensor.to(own[name].dtype).isfinite().all():
            raise FileError(path, f"the tensor {show(name)} holds NaN or infinity")


def save_tensors(
    module_or_state: nn.Module | dict[str, Tensor],
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a state dict as safetensors, whole or not at all; each of the tensors that share memory
    is written.

    Args:
        module_or_state: a module, or its state dict.
        path: ends in ``.safetensors``; folders are made as needed, an existing file is replaced.
        metadata: text beside the tensors, see `read_metadata`.
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
    """The text beside the tensors of a .safetensors file, from `save_tensors`; empty if there is
    none.
    """
    path = existing(path)
    try:
        if not in_unicode(path):
            with path.open("rb") as content:
                header = content.read(int.from_bytes(content.read(8), "little"))
            return dict(json.loads(header).get("__metadata__") or {})
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(
            path, f"is not a safetensors file, or a damaged one ({first_line(error)})"
        ) from error


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an array of which the file holds every value.

    A few bytes can claim to be a tensor of any size, or of another kind: stride 0, sparse, meta.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def refuse_hollow(tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raise FileError for a tensor that is not plain."""
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise FileError(
                path, f"the tensor {show(name)} is not a plain array of the values in the file"
            )


def kind_of(tensor: Tensor) -> str:
    """Whether values are fractions, whole or complex, which a cast must not change silently."""
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"
