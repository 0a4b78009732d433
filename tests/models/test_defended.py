"""The defended classifier: a plain module for everyone, with streams for those who know them."""

import copy

import pytest
import torch

from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import AdversarialTransform, RandomResizePad
from robusttrain.models.defended import DefendedClassifier, MeanPrediction


def test_it_is_the_classifier_behind_the_defense(convnet, curved, images, streams):
    defense, classifier = AdversarialTransform(curved()), convnet()
    defended = DefendedClassifier(defense, classifier)
    assert torch.equal(defended(images(), streams()), classifier(defense(images(), streams())))
    assert not torch.equal(defended(images(), streams()), classifier(images()))


def test_without_a_defense_it_is_the_classifier(convnet, images, streams):
    bare, classifier = DefendedClassifier(None, convnet()), convnet()
    assert torch.equal(bare(images(), streams()), classifier(images()))
    assert torch.equal(bare(images()), classifier(images()))


def test_whole_numbers_are_refused_not_taken_for_pixel_values(convnet, curved, images):
    for defense in (None, AdversarialTransform(curved())):
        model = DefendedClassifier(defense, convnet())
        with pytest.raises(UserError, match=r"images are uint8, .* give images\.float\(\) / 255"):
            model((images() * 255).byte())


def test_random_is_that_of_the_defense(convnet, curved):
    assert not DefendedClassifier(None, convnet()).random
    assert DefendedClassifier(RandomResizePad(8, 10), convnet()).random
    assert DefendedClassifier(AdversarialTransform(curved()), convnet()).random
    assert not DefendedClassifier(
        AdversarialTransform(curved(), random_start=False), convnet()
    ).random


def test_a_plain_call_draws_from_torchs_global_state(convnet, images):
    defended, results = DefendedClassifier(RandomResizePad(6, 12), convnet()), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(defended(images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("training", [False, True])
def test_the_fast_copy_is_the_same_function_and_leaves_the_original(
    training, convnet, curved, images, streams
):
    defended = DefendedClassifier(AdversarialTransform(curved()), convnet())
    expected = defended(images(), streams())
    defended.train(training)
    before = copy.deepcopy(defended.state_dict())
    fast = defended.fast()
    assert fast.classifier.folded == 2
    assert fast.defense is defended.defense
    torch.testing.assert_close(fast(images(), streams()), expected, rtol=0, atol=1e-4)
    assert [module.training for module in defended.modules()] == [training] * len(
        list(defended.modules())
    )
    assert all(parameter.requires_grad for parameter in defended.parameters())
    assert all(torch.equal(value, before[name]) for name, value in defended.state_dict().items())


def test_the_fast_copy_in_half_precision_answers_in_float32(convnet, images, streams):
    defended = DefendedClassifier(RandomResizePad(8, 10), convnet())
    logits, expected = (
        defended.fast(torch.bfloat16)(images(), streams()),
        defended(images(), streams()),
    )
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_torchattacks_takes_it_as_a_plain_module(convnet, curved, images):
    torchattacks = pytest.importorskip("torchattacks")
    defended = DefendedClassifier(AdversarialTransform(curved()), convnet()).eval()
    adversarial = torchattacks.PGD(defended, eps=0.03, alpha=0.01, steps=3)(
        images(), torch.arange(4) % 3
    )
    assert 0.01 < (adversarial - images()).abs().max() <= 0.03 + 1e-6


def test_foolbox_takes_it_as_a_plain_module(convnet, curved, images):
    foolbox = pytest.importorskip("foolbox")
    defended = DefendedClassifier(AdversarialTransform(curved()), convnet()).eval()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=3)
    model = foolbox.PyTorchModel(defended, bounds=(0, 1), device="cpu")
    adversarial = attack(model, images(), torch.arange(4) % 3, epsilons=0.03)[1]
    assert 0.01 < (adversarial - images()).abs().max() <= 0.03 + 1e-6


def test_a_mean_prediction_is_the_mean_of_the_softmax(convnet, images, streams):
    defended = DefendedClassifier(RandomResizePad(6, 12), convnet())
    passes = [defended(images(), streams().fold(number)).softmax(dim=1) for number in range(3)]
    torch.testing.assert_close(
        MeanPrediction(defended, 3)(images(), streams()).exp(), torch.stack(passes).mean(dim=0)
    )
    assert not torch.equal(passes[0], passes[1])


def test_a_mean_prediction_of_a_bare_model_is_its_own(convnet, images):
    bare = DefendedClassifier(None, convnet())
    torch.testing.assert_close(MeanPrediction(bare, 4)(images()), bare(images()).log_softmax(dim=1))


def test_a_mean_prediction_over_no_draws_is_refused(convnet):
    with pytest.raises(OptionError, match="draws = 0: must be at least 1"):
        MeanPrediction(DefendedClassifier(None, convnet()), 0)
