"""What an attack is said to cost on random models and on models that fuse losses, before it starts,
bounds what it asks of them.
"""

from dataclasses import replace

import pytest
import torch

from robusttrain.attacks import (
    APGD,
    DDN,
    FAB,
    FMN,
    L2,
    Average,
    CarliniWagner,
    DeepFool,
    MinimalNorm,
    NearestBoundary,
    Queried,
    Restarts,
    Several,
    SuperDeepFool,
    Target,
)
from robusttrain.attacks.ray import TRIES
from robusttrain.attacks.sources.surrogates import fused
from robusttrain.evaluation import Engine, Scenario
from robusttrain.evaluation.cost import announce

WIDE = L2(8.0)
CW = CarliniWagner(6, 0.05, search_steps=2, initial_c=1.0, votes=4, threat=WIDE)
ATTACKS = {
    "C&W": CW,
    "C&W, over draws": replace(CW, gradient=Average(2)),
    "DDN": DDN(8, votes=4, threat=WIDE),
    "DDN, over draws": DDN(8, votes=4, threat=WIDE, gradient=Average(2)),
    "FMN": FMN(8, votes=4, threat=WIDE),
    "nearest": NearestBoundary(8, votes=4, threat=WIDE),
    "restarts": Restarts(DDN(8, votes=4, threat=WIDE), 2, votes=3, threat=WIDE),
    "several": Several([FMN(8, votes=4), CW], votes=3, threat=WIDE),
    "bisection": MinimalNorm(FMN(4, votes=4), 2, votes=3, threat=WIDE),
    "APGD": APGD(4, threat=WIDE),
    "FAB": FAB(4, threat=WIDE),
    "DeepFool": DeepFool(4, votes=4, threat=WIDE),
    "SuperDeepFool": SuperDeepFool(4, votes=4, threat=WIDE),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("kind", ["deterministic", "random", "fused", "fused, random"])
def test_the_bound_holds(attack, kind, linear, random_linear, images, streams):
    member = random_linear if "random" in kind else linear
    model = fused([member(4), member(4)], None, "losses") if "fused" in kind else member(4)
    source, x = Queried(model), images(4)
    source.settle(x, streams(4, seed=5))
    with torch.no_grad():
        y = source(x, streams(4, seed=6)).argmax(1)
    source.reset()
    assert source.random == ("random" in kind)
    bound = attack.cost_on(source)
    attack(source, x, y, streams(4))
    assert source.gradients <= 4 * bound.gradients
    assert source.queries <= 4 * bound.queries
    plain = attack.cost()
    assert bound.gradients == plain.gradients
    assert bound.queries >= plain.queries
    if kind == "deterministic":
        assert bound == plain


def test_what_is_said_holds_the_search_on_a_random_model(random_linear, images, monkeypatch):
    """And what the progress bar counts on; both said 8 gradients and 1 query."""
    x, y, told = images(6), torch.arange(6) % 4, []

    class Data:
        def test_dataloader(self):
            return type("Loader", (), {"sampler": [range(6)]})

        def first_test_batch(self):
            return type("Batch", (), {"images": x, "labels": y})

    engine = Engine(random_linear(4), {"ddn": Scenario(ATTACKS["DDN"], Target())}, draws=2)
    planned = announce(engine, Data(), None, told.append, torch.device("cpu")).evaluations
    assert f"8 gradient evaluations and {1 + 4 * TRIES} queries per image" in told[0]
    assert planned == 8 + 1 + 4 * TRIES + engine.verdicts_per_image
    records, _ = engine.run(x, y, torch.arange(6))
    spent = records.of("ddn").queries
    assert spent.max() > 1, "the case shows nothing"
    assert spent.max() <= 1 + 4 * TRIES
