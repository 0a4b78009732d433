"""Whether a model takes images, and for how many classes it answers: asked before any attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.base import check_images
from robusttrain.core.advice import warn_once
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.raised import place, said

#: Values that a defense may hand on without a warning: those of images, and room for noise.
FAR = (-1.0, 2.0)


def need_two(classes: int) -> None:
    """Raise UserError where data have a single class."""
    if classes < 2:
        raise UserError(
            f"the data set has {classes} class: a classifier that cannot be wrong is robust against"
            " everything; give images of two classes or more"
        )


def check_classes(model: nn.Module, images: Tensor, classes: int, what: str = "the model") -> None:
    """Raise UserError unless the model takes these images, (B, C, H, W), and answers with this
    number of classes.
    """
    need_two(classes)
    with telling_far_ranges(model):
        answered = classes_of(model, images, what)
    if answered != classes:
        raise UserError(
            f"{what} answers with {answered} classes, but the data set has {classes}: change one"
            " of them"
        )


@contextmanager
def telling_far_ranges(model: nn.Module) -> Iterator[None]:
    """Warn if the model's defense, asked inside, hands on values far from [0, 1], which its
    classifier was hardly trained on: noise leaves [0, 1], bytes and normalised images leave `FAR`.
    """

    def look(defense: nn.Module, given: object, handed_on: Tensor) -> None:
        low, high = handed_on.min().item(), handed_on.max().item()
        if low < FAR[0] or high > FAR[1]:
            warn_once(
                f"defense {type(defense).__name__}: transform hands on values in [{low:.4g},"
                f" {high:.4g}], far from [0, 1]: images before and behind a defense are floats in"
                " [0, 1], and the classifier normalises them itself"
            )

    if not isinstance(model, DefendedClassifier) or model.defense is None:
        yield
        return
    hook = model.defense.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def classes_of(model: nn.Module, images: Tensor, what: str = "the model") -> int:
    """How many classes a model answers with.

    Raises:
        UserError: the model cannot take these images, (B, C, H, W).
    """
    queried = Queried.of(model)
    if any(tensor.is_meta for tensor in (*queried.parameters(), *queried.buffers())):
        raise UserError(
            f"{what} has weights on the device meta, which holds no values: load them where it is"
            " built, as with model.load_state_dict(weights, assign=True)"
        )
    images = check_images(images)
    for name, part in queried.model.named_modules():
        if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params():  # type: ignore[misc]
            raise UserError(
                f"{what}: its part {name or type(part).__name__} ({type(part).__name__}) has no"
                " weights before its first images say how many: call the model once, as with"
                f" torch.zeros(1, {', '.join(map(str, images.shape[1:]))}), where it is built"
            )
    if any(parameter.is_inference() for parameter in queried.parameters()):
        raise UserError(
            f"{what} was built in inference mode, so nobody can differentiate it: build or load it"
            " outside of torch.inference_mode()"
        )

    def asked(count: int) -> int:
        rng = Rng.for_images(0, torch.zeros(count, device=images.device))
        with prepared(queried), torch.no_grad():
            return int(queried(images[:count].clone(), rng).shape[1])

    try:
        answered = asked(1)
    except UserError:
        raise
    except Exception as error:
        whole = len(images) if len(images) > 1 else 2
        if whole <= len(images) and _takes(asked, whole):
            raise _of_one_size(what, f"{whole} images and not one") from error
        raise _cannot_take(model, what, images, error) from error
    try:
        return answered if len(images) < 2 else asked(2)
    except UserError:
        raise
    except Exception as error:
        raise _of_one_size(what, f"one image and not two ({said(error)})") from error


def _of_one_size(what: str, takes: str) -> UserError:
    return UserError(
        f"{what} takes {takes}: attacks go on with the images that they have not broken, so it has"
        " to take any number"
    )


def _cannot_take(model: nn.Module, what: str, images: Tensor, error: Exception) -> UserError:
    """The error about a model that does not take the images at all, and why, as far as it shows."""
    shape = tuple(images.shape[1:])
    why = f"{said(error)}{place(error)} (images are floats in [0, 1], channels first)"
    if "does not require grad" in str(error):
        why += "; weights are frozen while a model is attacked, so it cannot train in forward"
    defense = model.defense if isinstance(model, DefendedClassifier) else None
    own = getattr(getattr(model, "classifier", model), "image_size", None)
    if defense is None and isinstance(own, int) and own != shape[-1]:
        why += f"; it is built for {own} x {own} pixels, to which --data.image_size {own} resizes"
        why += " the pictures of a folder"
    if defense is not None:
        rng = Rng.for_images(0, torch.zeros(1, device=images.device))
        with suppress(Exception), prepared(defense), torch.no_grad():
            behind = tuple(defense(images[:1].clone(), rng).shape[1:])
            if behind != shape:
                name = type(defense).__name__
                return UserError(
                    f"{what} cannot take images of {behind}, which its defense {name} makes of"
                    f" {shape}: {why}"
                )
    return UserError(f"{what} cannot take images of {shape}: {why}")


def _takes(asked: Callable[[int], int], count: int) -> bool:
    """Whether a model takes that many images."""
    try:
        asked(count)
    except Exception:  # noqa: BLE001 - models are any code
        return False
    return True
