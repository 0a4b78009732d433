"""A module that training cannot touch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Frozen(nn.Module):
    """Holds a module in evaluation mode with frozen parameters, out of sight of everything that
    trains.

    The held module is no child: ``parameters()``, ``modules()``, ``train()``, optimizers and DDP
    buckets do not find it. It still follows ``to(device)``, is copied by ``deepcopy``, and is saved
    to and loaded from the state dict under this module's own name.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # A list is not a module: nn.Module's attribute hooks do not look into it.
        self._held = [module.eval().requires_grad_(False)]
        self._derived: dict[Any, nn.Module] = {}

    @property
    def module(self) -> nn.Module:
        """The held module."""
        return self._held[0]

    def derived(self, key: Any, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """``make(module)``, remembered until the held weights move or change."""
        if key not in self._derived:
            self._derived[key] = make(self.module)
        return self._derived[key]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return logits

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        before = self._places()
        self.module._apply(fn, recurse)
        if self._places() != before:
            self._derived.clear()
        return super()._apply(fn, recurse)

    def _places(self) -> list[tuple[Any, ...]]:
        """Where the held weights are; the same after a move to where they were already."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return [
            (0 if is_lazy(each) else each.data_ptr(), each.device, each.dtype) for each in tensors
        ]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        self._derived.clear()
        # The caller reports all misfits together, so nothing is raised here: even a wrong shape
        # becomes one of its messages.
        try:
            result = self.module.load_state_dict(own, strict=False)
        except RuntimeError as error:
            error_msgs.append(str(error))
            return
        missing_keys.extend(prefix + key for key in result.missing_keys)
        unexpected_keys.extend(prefix + key for key in result.unexpected_keys)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        copy = Frozen(deepcopy(self.module, memo))
        memo[id(self)] = copy
        return copy
