"""One context manager that readies a model for attack and puts everything back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """Ready ``model`` for attack; on leaving, put everything back as it was.

    Inside: every submodule in evaluation mode, parameters without gradients, gradients enabled,
    inference mode off. Afterwards: the mode of each submodule (frozen batch norm stays frozen),
    each ``requires_grad``, and the state of torch's global generators are as before. Parameters'
    ``.grad`` is never written to, because attacks differentiate with respect to images alone.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in wanted if parameter.is_cuda}
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng([device.index for device in devices]),
        ):
            for module, _ in modes:
                # Not module.eval(), which recurses and may be overridden to do more.
                module.training = False
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
