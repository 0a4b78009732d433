"""Ensemble adversarial training: whose adversarial images are trained on."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain import READER, load
from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.config.checkpoints import recipe_of
from robusttrain.core.errors import OptionError, UserError
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, EnsembleAdversarial, RobustTraining, Standard

LABELS = torch.tensor([0, 2, 1, 1])
FGSM = ProjectedGradient(1, relative_step_size=1.0, random_start=False, threat=Linf(0.1))


def network(seed, classes=3):
    torch.manual_seed(seed)
    return CifarResNet(classes, widths=[4, 4, 4], blocks=1).eval()


@pytest.fixture
def kept(tmp_path):
    """Writes networks as checkpoints of train.py."""

    def keep(seed, classes=3):
        options = {"num_classes": classes, "widths": [4, 4, 4], "blocks": 1}
        node = {"class_path": "robusttrain.models.CifarResNet", "init_args": options}
        training = RobustTraining(DefendedClassifier(None, network(seed, classes)), classes)
        state = {f"model.{name}": values for name, values in training.model.state_dict().items()}
        path = tmp_path / f"{seed}-{classes}.ckpt"
        data = {"class_path": "robusttrain.data.Digits", "init_args": {}}
        torch.save({"state_dict": state, "robusttrain": recipe_of(node, None, data)}, path)
        assert load(path)
        return str(path)

    return keep


def crafted(objective, model, images, rng):
    """The adversarial images that an objective trained on: what its second forward pass saw."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    objective(model, images, LABELS, rng)
    handle.remove()
    return seen[-1]


def test_static_models_and_the_model_itself_take_turns(kept, images, streams):
    x, model = images(), DefendedClassifier(None, network(0))
    objective = EnsembleAdversarial([kept(1), kept(2)], FGSM).opened(READER)
    sources = [network(1), network(2), DefendedClassifier(None, network(0))]
    expected = [FGSM(source, x, LABELS, streams()) for source in sources]
    turns = []
    for batch in range(24):
        rng = streams().fold(batch)
        found = crafted(objective, model, x, rng)
        # Folded batch norm rounds otherwise: a sign or two may differ, of different models every
        # other one does.
        apart = [(each - found).abs().gt(1e-6).float().mean().item() for each in expected]
        turns.append(apart.index(min(apart)))
        assert min(apart) < 0.02
        assert torch.equal(crafted(objective, model, x, rng), found)
    assert set(turns) == {0, 1, 2}
    assert all(turns.count(turn) >= 3 for turn in range(3))


def test_the_loss_mixes_clean_and_adversarial_images(kept, images, streams):
    x, model = images(), DefendedClassifier(None, network(0))
    for share in (0.0, 0.3, 1.0):
        objective = EnsembleAdversarial([kept(1)], FGSM, clean_share=share).opened(READER)
        losses, logits = objective(model, x, LABELS, streams())
        adversarial = crafted(objective, model, x, streams())
        clean, robust = (
            F.cross_entropy(model(each), LABELS, reduction="none") for each in (x, adversarial)
        )
        torch.testing.assert_close(losses, share * clean + (1 - share) * robust)
        torch.testing.assert_close(logits, model(x))
    assert torch.allclose(losses, Standard()(model, x, LABELS, streams())[0])


def test_more_steps_keep_the_models_that_were_read(kept, images, streams):
    objective = EnsembleAdversarial([kept(1), kept(2)], FGSM).opened(READER)
    for _ in range(2):  # once before its models are ready for attacks, once after
        stronger = AWP(objective).strengthened()
        assert stronger.objective.attack.steps == 2 * FGSM.steps
        stronger(DefendedClassifier(None, network(0)), images(), LABELS, streams())
        objective(DefendedClassifier(None, network(0)), images(), LABELS, streams())


def test_the_static_models_are_not_trained(kept, images, streams):
    model, objective = (
        DefendedClassifier(None, network(0)).train(),
        EnsembleAdversarial([kept(1)], FGSM).opened(READER),
    )
    for batch in range(4):
        losses, _ = objective(model, images(), LABELS, streams().fold(batch))
        losses.mean().backward()
    (static,) = objective.static(model, images())
    assert not any(
        weight.requires_grad or weight.grad is not None for weight in static.parameters()
    )
    assert all(weight.grad is not None for weight in model.parameters())
    assert model.training
    assert not static.training


def test_what_cannot_work_is_refused(kept, images, streams, tmp_path):
    with pytest.raises(OptionError, match=r"models = \[\]: name checkpoints"):
        EnsembleAdversarial()
    with pytest.raises(OptionError, match="clean_share = 2"):
        EnsembleAdversarial([kept(1)], clean_share=2)
    model = DefendedClassifier(None, network(0))
    with pytest.raises(
        UserError, match=r"models: .*1-5\.ckpt answers with 5 classes, but the data set has 3"
    ):
        EnsembleAdversarial([kept(1, 5)]).opened(READER)(model, images(), LABELS, streams())
    with pytest.raises(UserError, match="there is no such file"):
        EnsembleAdversarial([str(tmp_path / "none.ckpt")]).opened(READER)(
            model, images(), LABELS, streams()
        )
