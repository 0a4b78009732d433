"""Consistency between two draws: distances by hand, the draws that are compared, and what it
refuses.
"""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Consistency
from robusttrain.training.consistency import distance

LABELS = torch.tensor([0, 2, 1, 1])
P = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64).clamp_min(1e-12)
Q = torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.3, 0.5]], dtype=torch.float64).clamp_min(1e-12)


def test_distances_of_known_distributions():
    # Half of the weight lies on a class that the other never takes: half a bit, log(2) / 2 nats;
    # and none.
    found = distance(P.log(), Q.log(), "jensen_shannon")
    torch.testing.assert_close(
        found, torch.tensor([0.5, 0.0], dtype=torch.float64) * torch.tensor(2.0).log()
    )
    p, q = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.4, 0.6]])
    expected = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    torch.testing.assert_close(distance(p.log(), q.log(), "symmetric_kl"), expected[None])
    for kind in ("jensen_shannon", "symmetric_kl"):
        torch.testing.assert_close(
            distance(p.log(), q.log(), kind), distance(q.log(), p.log(), kind)
        )


@pytest.mark.parametrize("kind", ["jensen_shannon", "symmetric_kl"])
@pytest.mark.parametrize(
    "attack", [None, ProjectedGradient(steps=1, step_size=0.05, threat=Linf(0.1))]
)
def test_two_draws_are_compared(images, streams, linear, kind, attack):
    model = DefendedClassifier(RandomResizePad(low=4, canvas=8), linear())
    objective = Consistency(3.0, kind, 0.5, attack)
    losses, logits = objective(model, images(), LABELS, streams())
    x = (
        images()
        if attack is None
        else attack(model, images(), LABELS, streams().fold("inner attack"))
    )
    first, second = (model(x, streams().fold(name)) for name in ("draw 1", "draw 2"))
    assert (first - second).abs().max() > 0.01
    torch.testing.assert_close(logits, first)
    crossed = [F.cross_entropy(z, LABELS, reduction="none") for z in (first, second)]
    expected = sum(crossed) / 2 + 3 * distance(2 * first, 2 * second, kind)
    torch.testing.assert_close(losses, expected)


def test_a_defense_that_draws_nothing_is_refused(linear):
    with pytest.raises(UserError, match="Consistency: .*draws nothing.*--defense"):
        Consistency().check(DefendedClassifier(None, linear()))
    Consistency().check(DefendedClassifier(RandomResizePad(low=4, canvas=8), linear()))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"weight": -1.0}, "weight"),
        ({"distance": "l1"}, "distance"),
        ({"temperature": 0.0}, "temperature"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"batch_norm": "x"}, "batch_norm"),
    ],
)
def test_errors_name_the_option(options, name):
    with pytest.raises(OptionError, match=f"^{name} = "):
        Consistency(**options)
