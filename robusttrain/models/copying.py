"""Deep copies of modules that torch refuses to copy."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def deep_copy(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A deep copy, also of modules that hold results of their last pass.

    Features, attention maps and the weights that ``weight_norm`` and ``spectral_norm`` compute
    before each pass are parts of a graph, and torch refuses to copy such tensors. The copy holds
    their values.

    Args:
        model: any module.
        shared: tensors that the copy holds as they are.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        for value in module.__dict__.values():
            _detach(value, memo)
    return copy.deepcopy(model, memo)


def _detach(value: Any, memo: dict[int, Any], depth: int = 4) -> None:
    """Note a copy of each tensor with a history, in a value or inside its containers."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif depth and isinstance(value, dict):
        for part in value.values():
            _detach(part, memo, depth - 1)
    elif depth and isinstance(value, list | tuple | set | deque):
        for part in value:
            _detach(part, memo, depth - 1)
