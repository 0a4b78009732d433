"""Every attack on the pretend device: nothing falls back to the CPU, and the host waits for the
device as often as the table here says, however many steps an attack has.
"""

import inspect
from dataclasses import fields, is_dataclass

import pytest
import torch
from pretend_device import DEVICE
from subjects import KINDS, build, images_and_labels, scenario, shortened
from waits import agree, counted

import robusttrain.attacks as package
from robusttrain.attacks import (
    APGD,
    FAB,
    L2,
    Adam,
    Attack,
    AwayFromPrediction,
    Checkpoint,
    FiniteDifference,
    GradientEstimator,
    HopSkipJump,
    KLDivergence,
    MomentumNormalized,
    Objective,
    OwnSurrogate,
    ProjectedGradient,
    Reparameterization,
    SoftMargin,
    Source,
    Square,
    Target,
    Threat,
    UpdateRule,
)
from robusttrain.config import presets
from robusttrain.evaluation import Scenario

pytestmark = pytest.mark.filterwarnings("ignore:source ThroughDefense:UserWarning")

#: What no preset has.
MORE = {
    "ADAM": ProjectedGradient(rule=Adam(), objective=AwayFromPrediction()),
    "MOMENTUM-L2": ProjectedGradient(threat=L2(0.5), rule=MomentumNormalized()),
    "KL": ProjectedGradient(objective=KLDivergence()),
    "SOFT": ProjectedGradient(objective=SoftMargin()),
    "PIXELS": ProjectedGradient(gradient=FiniteDifference(along="pixels")),
    "APGD-L2": APGD(threat=L2(0.5)),
    "FAB-L2": FAB(threat=L2(0.5), nearest=True),
    "SQUARE-L2": Square(threat=L2(0.5)),
    "HOPSKIPJUMP-L2": HopSkipJump(threat=L2(0.5), nearest=True, until_inside=True),
}
NAMES = [*presets.names("attack"), *MORE]
#: Steps of the shorter run and of the longer one; attacks by queries have six a step.
STEPS = 1, 3

#: Every attack reads, once for a batch, in which range pixel values lie, and labels.
ON_ENTRY = 2
NEAREST = ("ddn", "fmn-l2", "fmn-linf", "nearest-l2", "nearest-linf")


def ways(name: str) -> list[str]:
    """An attack on the target itself, around its defense, and through the defense's steps."""
    return [name, f"{name}-bpda-i", f"{name}-through-defense"]


#: Attacks whose waits are more, and do not grow with their steps: on a deterministic target, and on
#: a random one. APGD asks which images are left for the next target; the others, for which images
#: the target is random, and which of them are wrong as they stand. Wrappers judge between members.
CONSTANT = {
    **dict.fromkeys(("apgd-t", "apgd-t-margin", "wt-apgd-t"), (3, 3)),
    **dict.fromkeys(("cw", "cw-paper", "d-cw"), (4, 5)),
    **dict.fromkeys(NEAREST, (5, None)),
    "liu-ensemble": (4, 4),  # each member anew: logits, or probabilities?
    "apgd-best-of": (4, 4),
    "pgd-restarts": (6, 6),
    **dict.fromkeys(ways("autoattack-rand"), (6, 6)),
    **dict.fromkeys(ways("autoattack-rand-few-classes"), (6, 6)),
    **dict.fromkeys(ways("autoattack"), (None, 15)),
    **dict.fromkeys(ways("autoattack-few-classes"), (None, 16)),
    **dict.fromkeys(("square", "square-quick", "SQUARE-L2"), (None, 4)),
    "random-noise": (None, 3),
    "fab-t": (None, 6),
    "FAB-L2": (4, None),
}

LEAVES = "an image leaves the batch once it is misclassified: the host must know how many stay"
VOTES = "at the end a few radii are put to votes, which end for an image where they are settled"
FIRST = "a search for the first misclassified point ends for an image where it is found"
#: Attacks whose waits grow with their steps, at most to so many at STEPS, and why.
GROWING = {
    ("square", "deterministic"): ((8, 20), LEAVES),
    ("square-quick", "deterministic"): ((8, 20), LEAVES),
    ("SQUARE-L2", "deterministic"): ((8, 20), LEAVES),
    ("random-noise", "deterministic"): ((7, 19), LEAVES),
    ("fab-t", "deterministic"): ((8, 12), LEAVES),
    ("genattack", "deterministic"): ((8, 14), LEAVES),
    ("deepfool", "deterministic"): ((5, 7), LEAVES),
    ("deepfool", "random"): ((5, 7), LEAVES),
    ("superdeepfool", "deterministic"): ((9, 17), LEAVES),
    ("superdeepfool", "random"): ((36, 48), f"{LEAVES}; {VOTES}"),
    **{(name, "random"): ((5, 36), VOTES) for name in NEAREST},
    ("FAB-L2", "random"): ((60, 80), VOTES),
    ("hopskipjump", "deterministic"): ((10, 16), FIRST),
    ("hopskipjump", "random"): ((17, 28), FIRST),
    ("HOPSKIPJUMP-L2", "deterministic"): ((10, 16), FIRST),
    ("HOPSKIPJUMP-L2", "random"): ((17, 22), FIRST),
    **{
        (f"autoattack{rest}{way}", "deterministic"): (most, f"Square and FAB: {LEAVES}")
        for rest, most in (("", (21, 37)), ("-few-classes", (22, 38)))
        for way in ("", "-bpda-i", "-through-defense")
    },
    **{
        ("minimal-norm", kind): (
            most,
            f"each run of its attack has one radius, from the host{more}",
        )
        for kind, most, more in (
            ("deterministic", (10, 13), ""),
            ("random", (41, 46), f"; {VOTES}"),
        )
    },
    **{
        (name, "deterministic"): ((4, 8), "JPEG's encoder is on the host, in every pass")
        for name in ("bpda-twin", "bpda-twin-eot")
    },
}


def made(name):
    return Scenario(MORE[name], Target()) if name in MORE else scenario(name)


def ran(name, kind, device, steps):
    """The waits of an attack, and its adversarial images; None where its source takes no such
    target.
    """
    found = made(name)
    source = build(found.source, kind, device)
    if source is None:
        return None
    attack = shortened(found.attack, steps)
    attack.check(source)
    x, y, rng = images_and_labels(device)
    # The first pass: copies that are folded, and what kind of answers there are.
    points = x[:1].clone().requires_grad_()
    source(points, rng[:1]).sum().backward()
    if source.transforms:
        source.transform(x[:1], rng[:1])
    with counted() as waits:
        result = attack(source, x, y, rng)
    assert result.device == torch.device(device)
    return waits, result.cpu()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_waits_do_not_grow_with_steps(name, kind):
    runs = [ran(name, kind, DEVICE, steps) for steps in STEPS]
    if runs[0] is None:
        (other,) = {*KINDS} - {kind}
        assert build(made(name).source, other, DEVICE) is not None
        return
    totals = tuple(waits.total() for waits, _ in runs)
    told = f"{totals}:\n{runs[1][0].told()}"
    if (name, kind) in GROWING:
        most, _ = GROWING[name, kind]
        assert all(one <= other for one, other in zip(totals, most, strict=True)), told
    else:
        constant = CONSTANT.get(name, (ON_ENTRY,) * 2)[[*KINDS].index(kind)]
        assert all(agree(each, constant) for each in totals), told
    _, expected = ran(name, kind, "cpu", STEPS[0])
    torch.testing.assert_close(runs[0][1], expected, atol=1e-5, rtol=0)


def classes_in(part):
    """The classes of a part and of the parts that it is made of."""
    if isinstance(part, list):
        return {each for inner in part for each in classes_in(inner)}
    if not is_dataclass(part):
        return set()
    inside = [getattr(part, each.name) for each in fields(part)]
    return {type(part)}.union(*map(classes_in, inside))


def test_every_attack_and_every_part_is_among_them():
    tried = classes_in([part for each in map(made, NAMES) for part in (each.attack, each.source)])
    kinds = (Attack, Source, GradientEstimator, Objective, UpdateRule, Threat)
    public = {
        each
        for each in vars(package).values()
        if inspect.isclass(each) and issubclass(each, kinds) and not inspect.isabstract(each)
    }
    # Opened, these are other sources, which are there.
    assert public - tried == {Checkpoint, OwnSurrogate, Reparameterization}


def test_the_table_names_what_there_is():
    assert {*CONSTANT} | {name for name, _ in GROWING} <= {*NAMES}
