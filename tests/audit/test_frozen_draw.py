"""The check of a frozen draw where that draw alone decides."""

import pytest
import torch

from robusttrain import DefendedClassifier, Rng
from robusttrain.attacks import FixedRandomness, Linf, ProjectedGradient, Target
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine, Scenario
from robusttrain.evaluation.audit.finding import NotRun
from robusttrain.evaluation.audit.others import fixed_randomness
from robusttrain.evaluation.audit.subject import Subject


class Dark(Defense):
    """A black image in one draw of five, and in the draw that `FixedRandomness` freezes."""

    random = True

    def transform(self, images, rng):
        number = rng.uniform(())
        frozen = self.number(images[:1])
        dark = (number - frozen).abs() < 0.1
        return torch.where(dark[:, None, None, None], torch.zeros_like(images), images)

    @staticmethod
    def number(image):
        key = torch.zeros(1, dtype=torch.int64, device=image.device)
        return Rng(key).fold("fixed").fold("defense").uniform(())


def test_a_frozen_draw_that_is_wrong_on_all_images_says_nothing(linear, images):
    """Of no image that is right a share would be NaN, which is no JSON either."""
    model = linear(classes=4)
    target = DefendedClassifier(Dark(), model)
    x = images(16)
    black = int(model(torch.zeros_like(x[:1])).argmax())
    labels = model(x).argmax(dim=1)
    x, labels = x[labels != black], labels[labels != black]
    frozen = FixedRandomness(inner=Target())(target)
    assert (frozen(x).argmax(dim=1) == black).all()
    attack = ProjectedGradient(2, step_size=0.001, threat=Linf(0.001))
    engine = Engine(target, {"pgd": Scenario(attack, Target())}, draws=4)
    indices = torch.arange(len(x))
    records, _ = engine.run(x, labels, indices)
    subject = Subject(engine, x, labels, indices)
    subject.records = records
    with pytest.raises(NotRun, match="the frozen draw"):
        fixed_randomness(subject)
