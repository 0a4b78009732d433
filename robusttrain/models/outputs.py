"""The answers of other people's classifiers, as logits (B, K)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robusttrain.core.advice import warn_once
from robusttrain.core.errors import UserError

#: The name under which models keep their logits, in dictionaries, named tuples and dataclasses.
LOGITS = "logits"
WANTED = "a classifier answers with logits (B, K), or (B,) or (B, 1) for two classes"


def logits_of(output: Any, batch: int) -> Tensor:
    """Logits (B, K) in float32 or wider, K at least 2, from whatever a classifier returned.

    - A dictionary, named tuple or dataclass gives its entry "logits"; without one, its only tensor,
      or its only tensor of two dimensions.
    - A tuple or list gives its only such tensor. If several of the same width could be logits, as
      where an auxiliary head answers as well, the first one is taken, and a warning says so.
    - (B, K, 1, 1) loses the ones, and (K,) for a batch of one image regains the batch.
    - (B,) and (B, 1) hold one logit z for two classes, which becomes (0, z): class 1 where z is
      positive. The gradients of both losses, of z and of (0, z), are the same.
    - numpy arrays become tensors, and whole numbers (votes) become floats. Neither has a gradient.

    Args:
        output: of a model.
        batch: B, the number of images that the model was given.

    Raises:
        UserError: the output is anything else.
    """
    logits = tensor_of(output, batch)
    shape = tuple(logits.shape)
    if logits.is_complex():
        raise UserError(f"the model answers with {logits.dtype}: {WANTED}")
    while logits.dim() > 2 and logits.shape[-1] == 1:
        logits = logits.squeeze(-1)
    if logits.dim() <= 1 and not logits.is_floating_point():
        raise UserError(
            f"the model answers with whole numbers {shape}, which look like classes: let it return"
            " what it takes the argmax of"
        )
    if logits.dim() == 0 or (logits.dim() == 1 and batch == 1 and len(logits) > 1):
        logits = logits[None]  # a model that squeezes a batch of one image
    if logits.dim() == 1:
        logits = logits[:, None]
    if logits.dim() != 2 or len(logits) != batch or not (logits.shape[1] or not batch):
        raise UserError(f"the model answers {shape} to {batch} images: {WANTED}")
    if not logits.is_floating_point():
        logits = logits.float()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits


def tensor_of(output: Any, batch: int) -> Tensor:
    """The one tensor that holds the logits, in whatever shape; as for `logits_of`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, np.ndarray | np.generic):
        return torch.as_tensor(output)
    named, parts = _parts_of(output)
    if any(_is_flag(part, batch) for part in parts):
        warn_once(
            f"the model answers with a {type(output).__name__} that holds a truth value for each"
            " image, which is not heeded: if it says that the model abstains, let it answer NaN"
            " there, which counts as wrong"
        )
    if LOGITS in named:
        return tensor_of(named[LOGITS], batch)
    tensors = [part for part in parts if isinstance(part, Tensor | np.ndarray)]
    fitting = [part for part in tensors if part.ndim == 2 and len(part) == batch] or [
        part for part in tensors if part.ndim == 1 and len(part) == batch
    ]
    if not fitting and len(tensors) == 1:
        fitting = tensors
    if not fitting or (named and len(fitting) > 1):
        held = f" of {', '.join(map(str, named))}" if named else f" of {len(parts)}"
        raise UserError(
            f"the model answers with a {type(output).__name__}{held if parts else ''}, and none of"
            f" it is called {LOGITS}: {WANTED}"
        )
    if len(fitting) > 1:
        # Without the number of images, so that one model has one line
        shapes = [f"(B{''.join(f', {size}' for size in part.shape[1:])})" for part in fitting]
        if len({*shapes}) > 1:
            raise UserError(
                f"the model answers with a {type(output).__name__} of {len(parts)}, and any of"
                f" {', '.join(shapes)} may be its logits: return one of them alone, or a dict that"
                f" calls it {LOGITS!r}"
            )
        warn_once(
            f"the model answers with a {type(output).__name__} of {len(parts)}: its first tensor"
            f" {shapes[0]} is taken for the logits"
        )
    return torch.as_tensor(fitting[0])


def _is_flag(part: Any, batch: int) -> bool:
    """Whether a part of an answer is true or false of each image, as where a detector rejects."""
    truths = isinstance(part, Tensor | np.ndarray) and part.dtype in (torch.bool, np.bool_)
    return truths and tuple(part.shape) in ((batch,), (batch, 1))


def _parts_of(output: Any) -> tuple[dict[str, Any], list[Any]]:
    """The parts of an output: by name, if they have names, and in order."""
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items()}
    elif isinstance(output, tuple) and hasattr(output, "_fields"):  # how typing tells a named tuple
        named = dict(zip(output._fields, output, strict=True))
    elif is_dataclass(output):
        named = {name: getattr(output, name) for name in output.__dataclass_fields__}
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        return {}, list(output)
    else:  # an object that holds them
        logits = getattr(output, "logits", None)
        named = {} if logits is None else {"logits": logits}
    return named, list(named.values())
