"""One context manager that readies a model for attack and puts everything back."""

from __future__ import annotations

import operator
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from robusttrain.attacks.asking import Queried, SourceModel
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense
from robusttrain.models.fast import FastModel
from robusttrain.models.frozen import Frozen

Key = TypeVar("Key")
Value = TypeVar("Value")
#: Modules of this package. They count, remember and cache on purpose, and need no ``eval()``.
OURS = (Queried, SourceModel, DefendedClassifier, Defense, FastModel, Frozen)
#: Containers whose content is put back; the content of subclasses is left alone.
CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
#: Where a module keeps its registered parameters and submodules.
REGISTERED = ("_parameters", "_modules")

#: Modules by their id; None: not even those.
_following: ContextVar[frozenset[int] | None] = ContextVar("following", default=frozenset())


@contextmanager
def following(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context, attacks do not put back the buffers of these modules.

    Such buffers are running statistics that are meant to follow the attack's images.
    """
    token = _following.set((_following.get() or frozenset()) | {id(module) for module in modules})
    try:
        yield
    finally:
        _following.reset(token)


@contextmanager
def followed_by_none() -> Iterator[None]:
    """Within this context, attacks put all buffers back, whatever `following` says around it."""
    token = _following.set(None)
    try:
        yield
    finally:
        _following.reset(token)


def may_follow() -> bool:
    """Whether running statistics may follow an attack's images here."""
    return _following.get() is not None


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """Ready ``model`` for attack; on leaving, put everything back as it was.

    Inside, the model is as its own ``eval()`` leaves it, whatever that does. Its parameters require
    no gradients, gradients are enabled, inference mode is off. Its forward pass may do what it does
    in ordinary use.

    Afterwards, the mode of each submodule (frozen batch norm stays frozen), buffers, attributes,
    hooks, each ``requires_grad`` and ``.grad``, and the state of torch's global generators are as
    before. Lists, dictionaries and tensors that are attributes get back what they held. Two things
    stay: values that a forward pass writes into its own parameters, and layers and parameters that
    a first pass builds, since another pass would draw them anew.

    Several threads may attack one model at once: it is ready as long as one of them is inside, and
    the last to leave puts everything back.
    """
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad():
        with _lock:
            here = _Preparation(model)
            _in_force.append(here)
        stack.callback(_end, here)
        yield


def _end(here: _Preparation) -> None:
    """End a preparation: put back what no other one needs that began later and is still in force.

    Of two threads that attack one model, the first to begin may be the first to end.
    """
    with _lock:
        later = _in_force[_in_force.index(here) + 1 :]
        _in_force.remove(here)
        for other in later:
            here.hand_over(other)
        here.put_back()


def _evaluating(module: nn.Module) -> None:
    """Put each module into evaluation mode by its own ``eval()``; modules of this package only pass
    the call on.
    """
    if isinstance(module, OURS):
        module.training = False
        for child in module.children():
            _evaluating(child)
    else:
        # An exported program has one mode, and says so in this way.
        with suppress(NotImplementedError):
            module.eval()


class _Preparation:
    """A model that is ready for attack, and all that it was before.

    Args:
        model: the model, which is made ready.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        followed = _following.get() or frozenset()
        self.before = {id(module): _Before(module) for module in modules}
        self.ids = {*self.before}
        self.values = _Values(
            [
                *(
                    buffer
                    for module in modules
                    if id(module) not in followed
                    for buffer in module._buffers.values()
                    if buffer is not None
                ),
                *(tensor for state in self.before.values() for tensor in state.tensors),
            ]
        )
        # Tensors that stand in for weights, as within AWP, are no leaves: torch lets nobody switch
        # off their gradients, and no attack's gradient goes there.
        self.wanted = {
            id(each): (each, each.requires_grad, each.grad)
            for each in model.parameters()
            if not is_lazy(each) and each.is_leaf
        }
        devices = {each.device for each, _, _ in self.wanted.values() if each.is_cuda}
        self.generators: dict[torch.device | None, Tensor] = {
            None: torch.get_rng_state(),
            **{device: torch.cuda.get_rng_state(device) for device in devices},
        }
        try:
            _evaluating(model)
            for parameter, _, _ in self.wanted.values():
                parameter.requires_grad_(False)
        except BaseException:
            self.put_back()
            raise

    def hand_over(self, other: _Preparation) -> None:
        """Leave it to another preparation, which began later and is still in force, to put back
        what both of them have: until it ends, the model stays ready.
        """
        _move(self.before, other.before)
        _move(self.wanted, other.wanted)
        _move(self.values.held, other.values.held)
        _move(self.generators, other.generators)

    def put_back(self) -> None:
        """Restore everything that was not handed over."""
        for module in self.before.values():
            module.put_back(self.ids)
        self.values.put_back()
        for parameter, requires_grad, gradient in self.wanted.values():
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for device, state in self.generators.items():
            if device is None:
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)


def _move(mine: dict[Key, Value], theirs: dict[Key, Value]) -> None:
    """What both have: mine, which is older, to them."""
    for key in mine.keys() & theirs.keys():
        theirs[key] = mine.pop(key)


#: Preparations in force, of all threads, in the order in which they began.
_in_force: list[_Preparation] = []
#: For the moments in which one begins or ends; a model's own eval() may attack another.
_lock = threading.RLock()


class _Held(NamedTuple):
    """A tensor before an attack.

    Args:
        tensor: the tensor.
        place: the memory that it had.
        values: what the memory held, (N,).
    """

    tensor: Tensor
    place: Tensor
    values: Tensor


class _Values:
    """What tensors held before an attack: one copy for each type, not one for each tensor.

    Attributes:
        held: each tensor and its values, a part of that copy, by the tensor's id.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], dict[int, Tensor]] = {}
        for key, tensor in {id(each): each for each in tensors}.items():
            # An inference tensor cannot be written to outside inference mode.
            if is_lazy(tensor) or tensor.is_inference() or tensor.is_quantized:
                continue
            if tensor.layout == torch.strided:
                groups.setdefault((tensor.dtype, tensor.device), {})[key] = tensor
        self.held: dict[int, _Held] = {}
        for group in groups.values():
            flat = [_once(tensor.data).reshape(-1) for tensor in group.values()]
            parts = torch.cat(flat).split([each.numel() for each in flat])
            for (key, tensor), part in zip(group.items(), parts, strict=True):
                self.held[key] = _Held(tensor, tensor.data, part)

    def put_back(self) -> None:
        """Restore all values, and the memory of tensors that were given another one.

        Autograd does not count the changes, so a graph that was built before the attack still goes
        backward.
        """
        alike: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = {}
        for tensor, place, values in self.held.values():
            if tensor.data_ptr() != place.data_ptr() or tensor.shape != place.shape:
                tensor.data = place  # the pass gave it another one: ``tensor.data = ...``
            own = _once(place)
            alike.setdefault((own.dtype, own.device), []).append((own, values.view(own.shape)))
        for pairs in alike.values():  # one call for all of them, not one for each
            torch._foreach_copy_([own for own, _ in pairs], [values for _, values in pairs])


def _once(tensor: Tensor) -> Tensor:
    """An expanded tensor as it was before: each number in memory once, or torch would refuse to
    write to it.
    """
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


class _Before:
    """The state of a module before an attack, except for the values of its tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self.attributes: dict[str, Any] = {}
        self.contents: list[tuple[Any, Any]] = []
        self.tensors: list[Tensor] = []
        self.whole = not isinstance(module, (*OURS, torch.jit.ScriptModule)) and not (
            isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
        )
        if self.whole:
            self.attributes = dict(module.__dict__)
            for value in self.attributes.values():
                if type(value) in CONTAINERS:
                    self.contents.append((value, value.copy() if value else ()))
                elif isinstance(value, Tensor) and value.is_leaf:
                    self.tensors.append(value)

    def put_back(self, ids_before: set[int]) -> None:
        """Restore the state.

        Args:
            ids_before: ``id()`` of each module that the model had before the attack.
        """
        module = self.module
        if self.whole:
            now = module.__dict__
            built: set[str] = set()
            for value, content in self.contents:
                if (value or content) and not _same(value, content):
                    more = self._built(value, content)
                    _refill(value, content, more)
                    built |= more.keys()
            if self._differs(now):
                for name in [name for name in now if name not in self.attributes]:
                    del now[name]
                for name, value in self.attributes.items():
                    if (name not in now or now[name] is not value) and name not in built:
                        now[name] = value
        module.training = self.training
        for child in module._modules.values():
            if child is not None and id(child) not in ids_before:
                child.train(self.training)

    def _differs(self, now: dict[str, Any]) -> bool:
        return len(now) != len(self.attributes) or any(
            map(operator.is_not, now.values(), self.attributes.values())
        )

    def _built(self, value: Any, content: Any) -> dict[str, Any]:
        """New layers and parameters, whose names were free before."""
        if not any(value is self.module.__dict__.get(name) for name in REGISTERED):
            return {}
        held = content or {}
        new = {name: part for name, part in value.items() if held.get(name) is None}
        return {name: part for name, part in new.items() if part is not None}


def _same(value: Any, content: Any) -> bool:
    """Whether a container holds the same objects, in the same order."""
    if not content:
        return not value
    if len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(
            one is other and value[one] is content[other]
            for one, other in zip(value, content, strict=True)
        )
    if isinstance(value, set):
        return value == content
    return all(one is other for one, other in zip(value, content, strict=True))


def _refill(value: Any, content: Any, more: dict[str, Any]) -> None:
    """Give a container its old content, and more."""
    value.clear()
    if isinstance(value, dict | set):
        value.update(content)
    else:
        value.extend(content)
    if more:
        value.update(more)
