"""Whatever a classifier returns, logits (B, K) come of it, or one line that says why not."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError
from robusttrain.models.declared import answer, as_module
from robusttrain.models.outputs import logits_of

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
FEATURES = torch.ones(2, 7, 4, 4)
InceptionOutputs = namedtuple("InceptionOutputs", ["logits", "aux_logits"])
GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])


@dataclass
class Answer:
    logits: Tensor
    hidden_states: tuple | None = None


class ImageClassifierOutput(OrderedDict):
    """As Hugging Face's: a dictionary without what is None."""


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        LOGITS[:, :, None, None],
        LOGITS.numpy(),
        LOGITS.double(),
        LOGITS.half(),
        (LOGITS,),
        [LOGITS],
        (FEATURES, LOGITS),
        (LOGITS, None),
        InceptionOutputs(LOGITS, LOGITS + 1),
        GoogLeNetOutputs(LOGITS, None, None),
        Answer(LOGITS),
        Answer(LOGITS, (FEATURES,)),
        {"logits": LOGITS, "features": LOGITS + 1},
        {"prediction": LOGITS},
        ImageClassifierOutput(loss=torch.zeros(()), logits=LOGITS),
        SimpleNamespace(loss=torch.zeros(()), logits=LOGITS),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found(output, recwarn):
    found = logits_of(output, 2)
    assert found.dtype == (
        torch.float64 if getattr(output, "dtype", 0) == torch.float64 else torch.float32
    )
    assert torch.equal(found.float(), LOGITS)
    assert not recwarn


def test_the_first_of_several_is_taken_and_that_is_said():
    with pytest.warns(UserWarning, match=r"a list of 2: its first tensor \(B, 3\) is taken"):
        assert torch.equal(logits_of([LOGITS, LOGITS + 1], 2), LOGITS)


def test_one_logit_is_two_classes():
    z = torch.tensor([0.5, -1.0])
    for output in (z, z[:, None], z[:, None, None]):
        assert torch.equal(logits_of(output, 2), torch.tensor([[0.0, 0.5], [0.0, -1.0]]))
    point = torch.tensor([0.3], requires_grad=True)
    two = nn.functional.cross_entropy(logits_of(point, 1), torch.tensor([1]))
    one = nn.functional.binary_cross_entropy_with_logits(point, torch.ones(1))
    torch.testing.assert_close(two, one)
    torch.testing.assert_close(torch.autograd.grad(two, point), torch.autograd.grad(one, point))


def test_a_squeezed_batch_of_one_regains_it():
    assert torch.equal(logits_of(LOGITS[0], 1), LOGITS[:1])
    assert torch.equal(logits_of(torch.tensor(0.5), 1), torch.tensor([[0.0, 0.5]]))


def test_votes_are_floats_and_nothing_of_nothing():
    assert torch.equal(
        logits_of(torch.tensor([[3, 1], [0, 4]]), 2), torch.tensor([[3.0, 1], [0, 4]])
    )
    assert logits_of(torch.zeros(0, 3), 0).shape == (0, 3)
    assert logits_of(torch.zeros(0), 0).shape == (0, 2)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (FEATURES, r"answers \(2, 7, 4, 4\) to 2 images"),
        (LOGITS[:1], r"answers \(1, 3\) to 2 images"),
        (torch.zeros(2, 0), r"answers \(2, 0\) to 2 images"),
        (torch.tensor([0, 2]), "whole numbers .* look like classes"),
        (LOGITS.to(torch.complex64), "complex64"),
        ({"out": FEATURES, "aux": FEATURES}, "a dict of out, aux, and none of it is called logits"),
        ({"a": LOGITS, "b": LOGITS}, "a dict of a, b, and none of it is called logits"),
        ((FEATURES, FEATURES), "a tuple of 2, and none"),
        (
            (torch.zeros(2, 512), LOGITS),
            r"a tuple of 2, and any of \(B, 512\), \(B, 3\) may be its logits: return one of them",
        ),
        ([LOGITS, LOGITS, torch.zeros(2, 4)], r"any of \(B, 3\), \(B, 3\), \(B, 4\) may be"),
        (None, "a NoneType, and none"),
        ("cat", "a str, and none"),
        (np.array(["cat"]), "."),
    ],
)
def test_anything_else_is_one_line(output, words):
    with pytest.raises((UserError, TypeError), match=words) as caught:
        logits_of(output, 2)
    assert "\n" not in str(caught.value)


def test_functions_are_models_and_nothing_else_is():
    assert torch.equal(
        answer(as_module(lambda images: images[:, :, 0, 0]), FEATURES, None), FEATURES[:, :, 0, 0]
    )
    model = nn.Identity()
    assert as_module(model) is model
    for wrong in (nn.Identity, "resnet18", 3):
        with pytest.raises(UserError, match=r"expected a torch\.nn\.Module or a function"):
            as_module(wrong)


def test_a_model_is_given_images_of_its_own_in_its_type():
    class Greedy(nn.Linear):
        def forward(self, images):
            assert images.dtype == self.weight.dtype
            return super().forward(images.sub_(0.5).flatten(1))

    images = torch.full((2, 1, 2, 2), 0.75)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = answer(Greedy(4, 3).to(dtype), images, None)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (images == 0.75).all()


@pytest.mark.parametrize(
    "flags",
    [torch.tensor([True, False]), np.array([True, False])],
    ids=["torch", "numpy"],
)
@pytest.mark.parametrize("as_output", [lambda *parts: parts, lambda a, b: {"logits": a, "no": b}])
def test_a_flag_beside_the_logits_is_told_to_be_passed_over(flags, as_output):
    """A detector's: what it rejects would count as right."""
    with pytest.warns(UserWarning, match=r"holds a truth value for each image, which is not heede"):
        found = logits_of(as_output(LOGITS, flags), 2)
    assert torch.equal(found, LOGITS)


def test_other_parts_are_no_flags(recwarn):
    assert torch.equal(logits_of((LOGITS, torch.tensor([0.5, 1.0])), 2), LOGITS)
    assert torch.equal(logits_of((LOGITS, torch.tensor([True])), 2), LOGITS)
    assert not recwarn.list
