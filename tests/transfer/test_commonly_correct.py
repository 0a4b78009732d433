"""Commonly correct images: the intersection, in any order and batch size, with the misfits
named.
"""

import pytest
import torch
from torch import nn

from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.transfer.commonly_correct import commonly_correct


class Brighter(nn.Module):
    """Class 1 where the mean of one channel exceeds a bound: what is right is known for every
    image.
    """

    def __init__(self, channel: int, bound: float = 0.5, classes: int = 2) -> None:
        super().__init__()
        self.channel, self.bound, self.classes = channel, bound, classes

    def forward(self, images):
        margin = images[:, self.channel].mean((1, 2)) - self.bound
        return torch.stack([-margin, margin] + [margin - 9] * (self.classes - 2), dim=1)


def candidates(count=8):
    """All images that are black or white in each of three channels; the label is whether the first
    is white.
    """
    colours = torch.tensor([[number >> shift & 1 for shift in range(3)] for number in range(8)])[
        :count
    ]
    images = (255 * colours).to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)
    return Batch(images, colours[:, 0], 10 + torch.arange(count))


def in_parts(batch, size):
    starts = range(0, len(batch.labels), size)
    return [Batch(*(part[start : start + size] for part in batch)) for start in starts]


EXPECTED = [index + 10 for index in range(8) if (index & 1) == (index >> 1 & 1)]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "b", "a"]])
def test_the_images_that_all_get_right(size, order):
    models = {"a": Brighter(0), "b": Brighter(1), "c": Brighter(0, 0.9)}
    found = commonly_correct(
        {name: models[name] for name in order}, in_parts(candidates(), size), 2
    )
    assert found.indices.tolist() == EXPECTED
    assert found.candidates == 8


def test_each_model_counts():
    batches = [candidates()]
    assert len(commonly_correct({"a": Brighter(0)}, batches, 2).indices) == 8
    assert len(commonly_correct({"a": Brighter(0), "b": Brighter(1)}, batches, 2).indices) == 4
    # A label of [1, x, y] that needs both other channels too leaves all black and all white.
    three = {name: Brighter(channel) for channel, name in enumerate("abc")}
    assert commonly_correct(three, batches, 2).indices.tolist() == [10, 17]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_each_models_own_accuracy_is_that_of_all_candidates(order):
    """Whichever models were asked before."""
    models = {"a": Brighter(0), "b": Brighter(1)}
    chosen = {name: models[name] for name in order}
    found = commonly_correct(chosen, in_parts(candidates(), 3), 2)
    assert found.accuracy == {"a": 1.0, "b": 0.5}


def test_indices_come_in_the_order_of_the_data():
    turned = Batch(*(part.flip(0) for part in candidates()))
    assert (
        commonly_correct({"a": Brighter(0), "b": Brighter(1)}, [turned], 2).indices.tolist()
        == EXPECTED
    )


def test_float_images_are_taken_as_they_are():
    batch = candidates()
    as_floats = batch._replace(images=batch.images.float() / 255)
    assert commonly_correct({"b": Brighter(1)}, [as_floats], 2).indices.tolist() == EXPECTED


def test_a_random_model_is_judged_by_the_seeds_draw(random_linear, images):
    many = images(60)
    model = random_linear()
    labels = model.forward(many, Rng.for_images(2, torch.arange(60))).argmax(1)
    batch = Batch(many, labels, torch.arange(60))

    def found(seed, size=60):
        return commonly_correct({"random": model}, in_parts(batch, size), 3, seed).indices.tolist()

    assert found(0) == found(0) == found(0, size=7)
    assert found(0) != found(1)
    assert 0 < len(found(0)) < 60


def test_models_are_left_as_they_were(convnet):
    model = convnet(classes=2)
    batch = candidates()
    batch = batch._replace(labels=model(batch.images / 255).argmax(1))  # in evaluation mode
    model.train()
    assert len(commonly_correct({"net": model}, [batch], 2).indices) == 8
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_common_image_tells_who_was_wrong():
    models = {"a": Brighter(0), "opposite": Brighter(0, 2.0), "zero": Brighter(0, -1.0)}
    with pytest.raises(
        UserError, match=r"no image of 8 .*\(a leaves 8, opposite leaves 4, zero leaves 0\)"
    ) as caught:
        commonly_correct(models, in_parts(candidates(), 3), 2)
    assert "\n" not in str(caught.value)


class OneSize(Brighter):
    """Asserts the size of its images, as timm's vision transformers do."""

    def forward(self, images):
        assert images.shape[-1] == 8, "Input height doesn't match model"
        return super().forward(images)


def test_other_classes_and_sizes_name_the_model():
    with pytest.raises(
        UserError, match=r"model odd answers with 5 classes, but the data set has 2"
    ):
        commonly_correct({"a": Brighter(0), "odd": Brighter(0, classes=5)}, [candidates()], 2)
    for large in (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), OneSize(0)):
        with pytest.raises(
            UserError, match=r"model large cannot take images of \(3, 4, 4\): "
        ) as caught:
            commonly_correct({"large": large}, [candidates()], 2)
        assert "\n" not in str(caught.value)


def test_nothing_to_try():
    with pytest.raises(UserError, match="at least one model"):
        commonly_correct({}, [candidates()], 2)
    with pytest.raises(UserError, match="no image of 0"):
        commonly_correct({"a": Brighter(0)}, [], 2)
