"""A fast copy of a model in training: made once, and brought up to date with its weights."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robusttrain.models.fast import BATCH_NORMS, CONVOLUTIONS, FastModel, fast_copy, folded_pairs


class Twin:
    """A `fast_copy` that follows every change of the weights, for the price of copying them.

    Args:
        model: the classifier, on the device where it will stay.
        dtype: of the computation.

    Attributes:
        useful: whether the copy is faster than the model, by folded batch norm or a shorter type.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.fast: FastModel = fast_copy(model, dtype)
        # If folding could not be verified, the copy still has its batch norms.
        self.pairs = folded_pairs(model) if self.fast.folded else []
        self.device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        own = {f"{name}.{kind}" for name, _ in self.pairs for kind in ("weight", "bias")}
        network = self.fast.network
        self.plain = [
            (name, tensor)
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
            if name not in own
        ]
        in_model = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        self.useful = (
            self.fast.copied
            and bool(self.fast.folded or dtype != torch.float32)
            and {name for name, _ in self.plain} <= in_model
        )

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> FastModel:
        """The copy, with the weights and statistics that ``model`` has now."""
        now = dict((*model.named_parameters(), *model.named_buffers()))
        for name, tensor in self.plain:
            tensor.copy_(now[name])
        for first, second in self.pairs:
            convolution, norm = model.get_submodule(first), model.get_submodule(second)
            assert isinstance(convolution, CONVOLUTIONS)
            assert isinstance(norm, BATCH_NORMS)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            target = self.fast.network.get_submodule(first)
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            target.get_parameter("weight").copy_(weight)
            target.get_parameter("bias").copy_(bias)
        return self.fast


_twins: WeakKeyDictionary[nn.Module, dict[torch.dtype, Twin]] = WeakKeyDictionary()


def fast_twin(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same function in evaluation mode, faster if possible; else the model itself.

    The first call on a model copies its structure, later calls its weights. Callers must not write
    to the copy.

    Args:
        model: a classifier; its gradients, mode and weights are left alone.
        dtype: of the computation.
    """
    twins = _twins.setdefault(model, {})
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    if dtype not in twins or twins[dtype].device != device:
        twins[dtype] = Twin(model, dtype)
    twin = twins[dtype]
    return twin.refresh(model) if twin.useful else model
