"""A pretend accelerator, ``pretend:0``: it computes on the CPU, and is as strict as a GPU.

Its tensors refuse to mix with the CPU's, and each time that the host has to wait for the device is
noted. As on a GPU, backward passes run in a thread of their own. So tests need no GPU to know that
nothing falls back to the CPU, and that no loop waits more often than it must.

The device is registered with torch for the whole process, for good. It has to be there before the
first backward pass, since torch then starts one thread for each device. So ``conftest.py`` imports
this file when tests are collected, and shows the device to the tests of this folder alone: what
looks for an accelerator in other tests finds none. Where there is an accelerator, none is
pretended: torch would take this one for the other. The tests of this folder then run on the real
one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from waits import COPIES, INDEXING, REAL, counting, note, waits_for

DEVICE = torch.device("cpu")
aten = torch.ops.aten


# The tensors.


class Pretend(Tensor):
    """A tensor that says it is on the device, and holds the numbers in one on the CPU.

    Attributes:
        number: whether it is a number of Python's, which a GPU would still have to be told.
    """

    inner: Tensor
    number = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)
        self.inner = other.inner

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else super().__format__(spec)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


@cache
def _takes_numbers(func: Any) -> bool:
    """Whether single numbers of the CPU may take part in an operation, as on a GPU."""
    return torch.Tag.pointwise in func.tags or func in INDEXING


def _foreign(func: Any, tensor: Tensor) -> None:
    """Raise RuntimeError if a tensor of the CPU may not take part in an operation on the device."""
    if func not in COPIES and (tensor.dim() or not _takes_numbers(func)):
        raise RuntimeError(
            f"{func}: Expected all tensors to be on the same device, but found at least two"
            f" devices, {DEVICE} and {tensor.device}! (a tensor of shape {tuple(tensor.shape)})"
        )


def _inner(func: Any, value: Any) -> Any:
    kind = type(value)
    if kind is Pretend:
        return value.inner
    if kind in (list, tuple):
        return kind([_inner(func, each) for each in value])
    if isinstance(value, Tensor):
        if isinstance(value, Pretend):
            return value.inner
        _foreign(func, value)
    return value


def _outer(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Pretend(value)
    if isinstance(value, list | tuple):
        return type(value)([_outer(each) for each in value])
    return value


@cache
def _written(func: Any) -> list[int | str] | None:
    """The arguments that an operation writes into and returns, by place or by name."""
    schema = func._schema
    places: list[int | str] = []
    for returned in schema.returns:
        if returned.alias_info is None or not returned.alias_info.is_write:
            return None
        for number, argument in enumerate(schema.arguments):
            info = argument.alias_info
            if info is not None and info.before_set == returned.alias_info.before_set:
                places.append(argument.name if argument.kwarg_only else number)
    return places or None


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others."""
    kernel = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), kernel)


@cache
def _is_view(func: Any) -> bool:
    """Whether an operation returns a view of its first argument."""
    infos = [each.alias_info for each in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation at least one of whose tensors is on the device."""
    if _is_composite(func):  # in inference mode nobody has taken it apart
        return func.decompose(*args, **kwargs)
    if counting and (kind := waits_for(func, args, kwargs)):
        note(kind)
    inner_kwargs = {name: _inner(func, value) for name, value in kwargs.items()}
    stays = True
    if inner_kwargs.get("device") is not None:
        stays = torch.device(inner_kwargs["device"]).type == DEVICE.type
        inner_kwargs["device"] = torch.device("cpu")
    result = func(*(_inner(func, each) for each in args), **inner_kwargs)
    written = _written(func)
    if written is not None:
        own = [kwargs[each] if isinstance(each, str) else args[each] for each in written]
        for each in own:
            if isinstance(each, Pretend) and each.shape != each.inner.shape:
                raise NotImplementedError(f"{func} changes the shape of a tensor of {DEVICE}")
        return own[0] if len(own) == 1 else tuple(own)
    if not stays:
        return result
    # A view of an ordinary tensor is one, in inference mode, too.
    if _is_view(func) and torch.is_inference_mode_enabled() and not args[0].is_inference():
        with torch.inference_mode(False):
            return _outer(result)
    return _outer(result)


# What torch expects of a device.


class _Backend:
    """The module ``torch.pretend``.

    Attributes:
        shown: whether code that looks for an accelerator finds this one.
        finished: how often somebody waited for all that it was given, to read a clock.
    """

    shown = False
    finished = 0

    def synchronize(self, device: Any = None) -> None:
        self.finished += 1

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.shown

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(self.shown)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        """As `manual_seed_all`."""

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are those of the CPU's generator, which is seeded besides."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    """What ``torch.accelerator`` asks."""

    def is_available(self) -> bool:
        return BACKEND.shown

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


BACKEND = _Backend()


def _factory(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes new tensors, on the device."""

    def made(*args: Any, **kwargs: Any) -> Tensor:
        for name in ("device", "pin_memory", "layout"):
            kwargs.pop(name, None)
        return Pretend(make(*args, **{k: v for k, v in kwargs.items() if v is not None}))

    return made


def _number(*args: Any, **kwargs: Any) -> Tensor:
    """What ``tensor[index] = 1.0`` makes of the number."""
    made: Any = _factory(aten.scalar_tensor.default)(*args, **kwargs)
    made.number = True
    return made


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``torch.tensor(..., device="pretend:0")`` and copies from the CPU end in."""
    copied: Tensor = _computed(aten.copy_.default, (target, source, non_blocking), {})
    return copied


def _short(op: Any) -> Callable[..., Tensor]:
    """A product as autocast computes it: in its short type."""
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        wide = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(dtype) if wide else value

    def computed(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(without):
            dtype = torch.get_autocast_dtype(DEVICE.type)
            result: Tensor = op(*(cast(each, dtype) for each in args), **kwargs)
            return result

    return computed


FACTORIES = (
    *("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step"),
    *("eye", "eye.m", "linspace", "logspace", "randperm", "randperm.generator", "tril_indices"),
    "triu_indices",
)

if REAL:
    DEVICE = torch.device(torch.accelerator.current_accelerator().type, 0)
else:
    _setup_privateuseone_for_python_backend("pretend", BACKEND, _Hook())
    DEVICE = torch.device("pretend:0")
    _library = torch.library.Library("aten", "IMPL")
    for _name in FACTORIES:
        _packet, _, _overload = _name.partition(".")
        _make = getattr(getattr(aten, _packet), _overload or "default")
        _library.impl(_name, _factory(_make), "PrivateUse1")
    _library.impl("scalar_tensor", _number, "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")
    for _name in ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "addmm", "bmm"):
        _library.impl(_name, _short(getattr(aten, _name).default), "AutocastPrivateUse1")
    _all = torch.library.Library("_", "IMPL")
    _all.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
