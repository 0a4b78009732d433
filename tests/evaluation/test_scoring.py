"""From verdicts to accuracies: intervals, draws, and the worst case."""

import math

import pytest
import torch
from torch import nn

from robusttrain.attacks.queries import share_wrong
from robusttrain.evaluation import top_classes, verdicts, wilson, worst_case
from robusttrain.evaluation.scoring import median
from robusttrain.models.defended import DefendedClassifier


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (829, 1000, 0.8044, 0.8511),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_intervals_that_are_known(right, count, low, high):
    assert wilson(right / count, count) == pytest.approx([low, high], abs=5e-4)


def test_wilson_of_no_image_says_nothing():
    assert wilson(0.0, 0) == [0.0, 1.0]


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize(
    ("logits", "right"),
    [
        ([1.0, 2.0, 0.0], True),
        ([3.0, 2.0, 0.0], False),
        ([float("nan")] * 3, False),
        ([0.0, float("nan"), 0.0], False),
        ([0.0, 5.0, float("-inf")], True),  # the logarithm of a probability that is zero
        ([6.0, 5.0, float("-inf")], False),
        ([float("-inf")] * 3, False),
        ([0.0, float("inf"), 0.0], False),
    ],
)
def test_an_answer_that_names_no_class_is_not_right(images, streams, logits, right, recwarn):
    labels = torch.ones(4, dtype=torch.long)
    found = verdicts(Constant(logits), images(), labels, streams(), 2)
    assert found.tolist() == [[right, right]] * 4
    wrong = share_wrong(Constant(logits), images(), labels, streams())
    assert wrong.tolist() == [1 - right] * 4
    named = "nan" not in str(logits) and abs(max(logits)) < float("inf")
    assert any("names no class" in str(each.message) for each in recwarn) != named


def test_each_draw_takes_streams_of_its_own(images, streams, random_linear):
    model = random_linear(scale=1.0)
    x, labels = images(8), torch.arange(8) % 3
    found = verdicts(model, x, labels, streams(8), 40)
    assert found.shape == (8, 40)
    for draw in (0, 17, 39):
        assert torch.equal(found[:, draw], model(x, streams(8).fold(draw)).argmax(1) == labels)
    share = found.float().mean(1)
    assert ((share > 0) & (share < 1)).any(), (
        "no image whose verdict depends on the draw: nothing was tested"
    )


def test_draws_in_chunks_are_the_same_draws(images, streams, random_linear):
    model, x, labels = random_linear(scale=1.0), images(100), torch.arange(100) % 3
    whole = verdicts(model, x, labels, streams(100), 7)  # two draws at once
    alone = torch.cat(
        [verdicts(model, x[i, None], labels[i, None], streams(100)[i : i + 1], 7) for i in range(5)]
    )
    assert torch.equal(whole[:5], alone)


def test_the_model_is_judged_in_evaluation_mode_and_left_as_it_was(images, streams, convnet):
    model = DefendedClassifier(None, convnet())
    x = images(8)
    labels = model(x).argmax(1)
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert verdicts(model, x, labels, streams(8), 3).all()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_likeliest_classes_in_order(images, streams):
    assert (
        top_classes(Constant([0.0, 3.0, 1.0, 2.0]), images(2), streams(2), 2, top=3).tolist()
        == [[[1, 3, 2]] * 2] * 2
    )


def test_there_are_no_more_classes_than_the_model_has(images, streams):
    assert top_classes(Constant([1.0, 0.0]), images(2), streams(2), 1).tolist() == [[[0, 1]]] * 2


def test_of_equal_logits_the_first_is_the_answer_as_argmax_has_it(images, streams):
    assert top_classes(
        Constant([0.0, 1.0, 1.0, 1.0]), images(1), streams(1), 1, top=2
    ).tolist() == [[[1, 2]]]


def test_no_class_where_a_logit_is_not_finite(images, streams):
    assert (top_classes(Constant([0.0, float("inf"), 0.0]), images(2), streams(2), 1) == -1).all()


def test_no_image_no_verdict(images, streams, linear):
    assert verdicts(linear(), images(0), torch.zeros(0, dtype=torch.long), streams(0), 3).shape == (
        0,
        3,
    )


def test_the_worst_attack_is_chosen_for_each_image():
    selection = torch.tensor([[1.0, 1.0, 1.0, 0.5], [0.0, 1.0, 0.5, 0.5], [1.0, 0.2, 0.5, 0.5]])
    score = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.1, 0.8, 0.4, 0.6], [0.7, 0.3, 0.5, 0.5]])
    # Equal for images 2 and 3: row 1 is the worse one over all images (mean 0.5 against 0.55).
    assert worst_case(selection, score).tolist() == pytest.approx([0.1, 0.3, 0.4, 0.6])


def test_the_worst_case_of_attacks_that_do_nothing_is_not_the_luck_of_the_draw():
    rng = torch.Generator().manual_seed(0)
    draws = (torch.rand(2, 5, 4000, 10, generator=rng) < 0.9).float().mean(3)
    assert worst_case(draws[0], draws[1]).mean() == pytest.approx(0.9, abs=0.005)
    assert worst_case(draws[0], draws[0]).mean() < 0.8, (
        "choosing and scoring by the same draws must show the bias"
    )


@pytest.mark.parametrize(
    ("values", "middle"),
    [
        ([0.1, 0.9], 0.5),
        ([3.0, 1.0, 2.0], 2.0),
        ([4.0, 1.0, 2.0, 3.0], 2.5),
        ([7.0], 7.0),
        ([1.0, math.inf], math.inf),
        ([1.0, math.inf, math.inf, math.inf], math.inf),
        ([1.0, 2.0, 3.0, math.inf], 2.5),
    ],
)
def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two(values, middle):
    assert median(torch.tensor(values)) == pytest.approx(middle)
