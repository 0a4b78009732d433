"""Fast copies of a classifier for attacks, which need only gradients with respect to the input.

A model that cannot be copied (TorchScript) is taken as it is.

Batch norm in evaluation mode is an affine map, so it is folded into the convolution before it. Max
pooling goes before ReLU. Weights and images are channels_last, and may be bfloat16. In float32 wide
convolutions take fewer multiplications on CPUs (`robusttrain.models.winograd`).

torch.fx only *finds* the order of the layers. The copy keeps the model's own Python code and gets
other submodules. So shape checks, flags and random draws in ``forward`` behave as before, and
tracing fixes nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from weakref import WeakSet

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robusttrain.core.memory_format import in_rows, use_fastest_format
from robusttrain.core.rng import Rng
from robusttrain.models.compiling import Compiled, wanted
from robusttrain.models.copying import deep_copy
from robusttrain.models.declared import dtype_of, output_of, takes_streams
from robusttrain.models.layers import hooked
from robusttrain.models.nearby import Memory, remembered
from robusttrain.models.outputs import tensor_of
from robusttrain.models.tracing import Tracer
from robusttrain.models.winograd import use_winograd

logger = logging.getLogger(__name__)

#: Models whose copies answer otherwise than they do: attacks differentiate these themselves.
_uncopied: WeakSet[nn.Module] = WeakSet()

# Exact classes: a subclass may compute its weight (weight standardisation, parametrizations).
# Conv2dSame only pads.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
BATCH_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.SyncBatchNorm, BatchNormAct2d),  # the former needs other processes in training alone
)
TOLERANCE = 1e-3


class FastModel(nn.Module):
    """An evaluation-only model in another dtype: images (B, C, H, W) of any float dtype to logits
    (B, K) in float32, or in float64 if the model computes in it.

    It stays in evaluation mode, also after a call of `train`.

    Args:
        network: the prepared copy.
        dtype: of the computation.
        autocast: whether to leave the weights as they are and compute under autocast.

    Attributes:
        folded: number of batch norms folded into convolutions.
        copied: whether the network is a copy, and not the model itself.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        autocast: bool,
        folded: int,
        copied: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.dtype, self.autocast, self.folded = network, dtype, autocast, folded
        self.copied = copied
        self._each: dict[str, Compiled] = {}
        for name in ("num_classes", "in_channels", "image_size", "takes_rng", "random"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        self.eval()

    def train(self, mode: bool = True) -> FastModel:
        """Stay in evaluation mode: folded batch norm has no other. A model that is no copy keeps
        the mode that its owner gave it.
        """
        if self.copied:
            return super().train(False)
        self.training = False
        return self

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K), differentiable twice; ``rng`` is for
        networks that take streams.
        """
        layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
        if not self.copied and images.dim() == 4:
            images, layout = in_rows(images), torch.preserve_format  # it may read them as they lie
        compiled = self._compiled(images)
        if self.autocast:
            with torch.autocast(images.device.type, self.dtype):
                images = images.to(torch.float32, memory_format=layout)
                return _wide(self.network, images, rng, compiled)
        images = images.to(self.dtype, memory_format=layout)
        memory = self._memory(images)
        if memory is not None:
            ask = partial(_wide, self.network, rng=rng)
            return _widened(memory.logits(self.network, images, ask))
        return _wide(self.network, images, rng, compiled)

    def _memory(self, images: Tensor) -> Memory | None:
        """What was computed for points nearby, where a search remembers it; measured on CPUs alone,
        where an answer takes as long as its multiplications.
        """
        memory = remembered()
        asked = not torch.is_grad_enabled() and images.dim() == 4 and images.device.type == "cpu"
        fits = self.copied and self.dtype == torch.float32 and not takes_streams(self.network)
        return memory if memory is not None and asked and fits and len(images) else None

    def _compiled(self, images: Tensor) -> Compiled | None:
        """What answers in the network's place; None for the network itself.

        Copies alone are compiled, since nobody else writes to them, and where the gradient with
        respect to the images is asked for.
        """
        mode = wanted()
        if mode == "off" or not (self.copied and images.requires_grad):
            return None
        if mode not in self._each:
            self._each[mode] = Compiled(self.network, mode)
        return self._each[mode]


def _wide(
    network: nn.Module, images: Tensor, rng: Rng | None, compiled: Compiled | None = None
) -> Tensor:
    """A network's logits in float32 or wider, in the network's own shape."""
    return _widened(tensor_of(output_of(network, images, rng, compiled), len(images)))


def _widened(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def leave_uncopied(model: nn.Module) -> None:
    """From now on `fast_copy` wraps the model itself: its copies answer otherwise than it does."""
    _uncopied.add(model)


def left_uncopied(model: nn.Module) -> bool:
    """Whether `leave_uncopied` was called for a model."""
    return model in _uncopied


def fast_copy(
    model: nn.Module, dtype: torch.dtype = torch.float32, example: Tensor | None = None
) -> FastModel:
    """A deep copy of ``model`` for attacks: evaluation mode, parameters frozen, batch norm folded,
    channels_last; the model itself, wrapped, where it cannot be copied (`leave_uncopied`).

    The model itself is left as it is: mode, ``requires_grad``, memory format, weights. The copy
    does not follow later changes of the model's weights. The rewritten copy is checked against a
    plain copy on ``example``. If the logits differ by more than 1e-3 of the largest one, or no
    check is possible, the plain copy is taken.

    Args:
        model: a classifier.
        dtype: of the computation; for a model in float64, float32 means float64. With a half type,
            a model that keeps a batch norm (which could not be folded), or insists on float32
            somewhere, runs under autocast instead of with cast weights.
        example: images (B, C, H, W) for the check; None draws two of the model's ``in_channels``
            and ``image_size`` (32 where it is None).
    """
    cuda = sorted(
        {tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"}
    )
    kind = next((parameter.device.type for parameter in model.parameters()), "cpu")
    if dtype == torch.float32 and dtype_of(model) == torch.float64:
        dtype = torch.float64
    # Parameters made in inference mode could never be attacked. Tracing and checking may draw
    # random numbers. Under the autocast of mixed-precision training, the check would see the
    # rounding of bfloat16.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(kind, enabled=False),
        torch.random.fork_rng(devices=cuda),
    ):
        plain = None if model in _uncopied else _copied(model)
        if plain is None:
            short = dtype in (torch.bfloat16, torch.float16)
            return FastModel(model, dtype, short, folded=0, copied=False)
        network = _prepared(model)
        folded, changed = _rewrite(network, _pairs(_prepared(model)))
        if example is None:
            example = _example(plain)
        if changed and not _agree(plain, network, example):
            logger.debug(
                "%s: folding batch norm could not be verified, so it is not folded",
                type(model).__name__,
            )
            network, folded = plain, 0
        autocast = dtype in (torch.bfloat16, torch.float16) and (
            any(isinstance(module, _BatchNorm) for module in network.modules())
            or not _runs_in(network, dtype, example)
        )
        if dtype == torch.float32:
            use_winograd(network)
        return FastModel(network if autocast else network.to(dtype), dtype, autocast, folded)


def folded_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions and batch norms that `fast_copy` folds into one if it can verify
    the folding.
    """
    foldable = []
    for names in _pairs(_prepared(model)):
        first, second = (model.get_submodule(name) for name in names)
        if (
            type(first) in CONVOLUTIONS
            and type(second) in BATCH_NORMS
            and second.running_mean is not None
        ):
            foldable.append(names)
    return foldable


def _rewrite(network: nn.Module, pairs: list[tuple[str, str]]) -> tuple[int, bool]:
    """Change ``network`` in place where a pair of layers has a faster equivalent.

    Args:
        network: in evaluation mode.
        pairs: names of layers of which the second is the only one to see the first's output.

    Returns:
        The number of folded batch norms, and whether anything changed.
    """
    folded, changed = 0, False
    for names in pairs:
        first, second = (network.get_submodule(name) for name in names)
        if (
            type(first) in CONVOLUTIONS
            and type(second) in BATCH_NORMS
            and second.running_mean is not None
        ):
            # timm's batch norm brings its activation along.
            rest = (
                nn.Sequential(second.drop, second.act)
                if isinstance(second, BatchNormAct2d)
                else nn.Identity()
            )
            replacements = (fuse_conv_bn_eval(first, second), rest)  # type: ignore[type-var, arg-type]
            folded += 1
        elif type(first) is nn.ReLU and type(second) is nn.MaxPool2d and not second.return_indices:
            # ReLU and max pooling commute, in values and gradients alike, and after pooling the
            # ReLU has a quarter of the work.
            replacements = (second, first)  # type: ignore[assignment]
        else:
            continue
        changed = True
        for name, module in zip(names, replacements, strict=True):
            network.set_submodule(name, module)
    return folded, changed


def _pairs(scratch: nn.Module, prefix: str = "") -> list[tuple[str, str]]:
    """Names of layers (a, b) such that only b sees a's output; both are called once, without hooks.

    If the module cannot be traced as a whole, its children are tried one by one.

    Args:
        scratch: a copy for this purpose alone (tracing may leave proxies in its attributes).
        prefix: put before the names.
    """
    try:
        graph = _Tracer().trace(scratch)
    except Exception:  # noqa: BLE001 - forward is any code: whatever cannot be done with a proxy ends up here
        return [
            pair
            for name, child in scratch.named_children()
            for pair in _pairs(child, f"{prefix}{name}.")
        ]

    layers = {
        node: scratch.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"
    }
    calls = Counter(id(layer) for layer in layers.values())
    plain = {node for node, layer in layers.items() if calls[id(layer)] == 1 and not hooked(layer)}
    return [
        (prefix + node.args[0].target, prefix + node.target)
        for node in layers
        if node in plain and node.args and node.args[0] in plain and len(node.args[0].users) == 1
    ]


class _Tracer(Tracer):
    """Follows a forward pass down to the layers that can be folded, timm's own among them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*CONVOLUTIONS, _BatchNorm)) or super().is_leaf_module(
            m, module_qualified_name
        )


def _copied(model: nn.Module) -> nn.Module | None:
    """`_prepared`; None for models that cannot be copied: TorchScript, exported programs, many that
    hold files or locks.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return None
    try:
        return _prepared(model)
    except Exception:  # noqa: BLE001 - copying runs any code that the model's parts bring along
        logger.info("%s cannot be copied, so it is attacked as it is", type(model).__name__)
        return None


def _prepared(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, frozen, channels_last, in float32 or float64, in which folding is
    done and checked.
    """
    exact = torch.float64 if dtype_of(model) == torch.float64 else torch.float32
    twin = deep_copy(model).eval().requires_grad_(False).to(exact)
    for parameter in twin.parameters():
        parameter.grad = None
    use_fastest_format(twin)
    return twin


def _example(model: nn.Module) -> Tensor | None:
    """Two random images of the shape that the model declares; None if it declares none."""
    channels, size = getattr(model, "in_channels", None), getattr(model, "image_size", None) or 32
    parameter = next(model.parameters(), None)
    if not isinstance(channels, int) or parameter is None:
        return None
    rng = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, size, size, generator=rng).to(parameter.device)


def _agree(plain: nn.Module, folded: nn.Module, example: Tensor | None) -> bool:
    """Whether both networks give the same logits on ``example``, with the same random numbers."""
    if example is None:
        return False
    try:
        expected, actual = (_seeded(network, example) for network in (plain, folded))
    except Exception:  # noqa: BLE001 - an example that the model does not take: nothing is verified
        return False
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _runs_in(model: nn.Module, dtype: torch.dtype, example: Tensor | None) -> bool:
    """Whether the model computes in ``dtype`` throughout, tried on a cast copy."""
    if example is None:
        return False
    try:
        return bool(_seeded(deep_copy(model).to(dtype), example).isfinite().all())
    except Exception:  # noqa: BLE001 - a layer that insists on another dtype
        return False


def _seeded(network: nn.Module, images: Tensor) -> Tensor:
    """One forward pass whose random numbers, if it draws any, are the same each time."""
    torch.manual_seed(0)
    return _wide(network, images, None)
