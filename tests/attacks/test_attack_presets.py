"""Attack presets: each builds, says where it is from, holds its paper's figures, and can be
overridden.
"""

from pathlib import Path

import pytest

from robusttrain.attacks import (
    APGD,
    DDN,
    DLR,
    FAB,
    FMN,
    L2,
    RMSD,
    Average,
    AverageLogits,
    Backprop,
    CarliniWagner,
    Checkpoint,
    ClassifierOnly,
    CrossEntropy,
    DeepFool,
    Diverse,
    Ensemble,
    EnsemblePattern,
    FewerSteps,
    FiniteDifference,
    FixedRandomness,
    GenAttack,
    HopSkipJump,
    IdentityBackward,
    Linf,
    Margin,
    MeanStart,
    MinimalNorm,
    MomentumSign,
    NearestBoundary,
    Normalized,
    Optimization,
    OwnSurrogate,
    ProjectedGradient,
    RandomNoise,
    Reparameterization,
    Restarts,
    Several,
    Sign,
    SinglePattern,
    Smooth,
    Square,
    SuperDeepFool,
    Target,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
    ThroughDefense,
    TwinBackward,
    UnitRMSD,
    UnrolledTransform,
    WrongProbability,
)
from robusttrain.attacks.sources.surrogates import surrogates_in
from robusttrain.config import presets
from robusttrain.config.attacks import attack_nodes, scenarios, split_attacks
from robusttrain.config.suites import suite
from robusttrain.core.errors import UserError
from robusttrain.defenses import AdversarialTransform
from robusttrain.models.defended import DefendedClassifier

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted((CONFIGS / "attack").glob("*.yaml"))
PIXEL = 1 / 255

# Steps, step size (relative to epsilon where marked so), random start, estimator, rule, source.
FIGURES = {
    "fgsm": (1, "1.0", False, Backprop(), Sign(), Target()),
    "pgd": (20, "0.1", True, Backprop(), Sign(), Target()),
    "pgd-quick": (10, "0.25", True, Backprop(), Sign(), Target()),
    "pgd-few": (4, "2.0", False, Backprop(), Sign(), Target()),
    "ifgsm": (18, PIXEL, False, Backprop(), Sign(), Target()),
    "mifgsm": (18, PIXEL, False, Backprop(), MomentumSign(1.0), Target()),
    "difgsm": (18, PIXEL, False, Diverse, Sign(), Target()),
    "mdifgsm": (18, PIXEL, False, Diverse, MomentumSign(1.0), Target()),
    "nrigsm": (8, 5 * PIXEL, False, Smooth, Sign(), Target()),
    "wt": (50, 0.002, False, Backprop(), Sign(), ClassifierOnly()),
    "bpda-i": (50, 0.002, False, Backprop(), Sign(), IdentityBackward()),
    "bpda-i-quick": (10, "0.25", False, Backprop(), Sign(), IdentityBackward()),
    "bpda-eot": (20, 0.004, False, Average(10), Sign(), IdentityBackward()),
    "bpda-eot-paper": (50, 0.002, False, Average(500), Sign(), IdentityBackward()),
    "bpda-twin": (50, 0.002, False, Backprop(), Sign(), TwinBackward()),
    "bpda-twin-eot": (20, 0.004, False, Average(10), Sign(), TwinBackward()),
    "bpda-i-momentum": (10, 0.0062, False, Average(10), MomentumSign(0.5), IdentityBackward()),
    "bpda-i-margin": (20, 0.004, False, Average(10), Sign(), IdentityBackward()),
    "average-logits": (20, 0.004, False, AverageLogits(10), Sign(), IdentityBackward()),
    "automatic-differentiation": (
        50,
        0.002,
        False,
        Backprop(),
        Sign(),
        UnrolledTransform("automatic"),
    ),
    "bpda-softsign": (50, 0.002, False, Backprop(), Sign(), UnrolledTransform("softsign")),
    "bpda-tanh": (50, 0.002, False, Backprop(), Sign(), UnrolledTransform("tanh")),
    "fixed-randomness": (
        50,
        0.002,
        False,
        Backprop(),
        Sign(),
        FixedRandomness(0, IdentityBackward()),
    ),
    "fewer-steps": (
        50,
        0.002,
        False,
        Backprop(),
        Sign(),
        FewerSteps(2, UnrolledTransform("softsign")),
    ),
    "finite-differences": (10, 0.0062, False, FiniteDifference(100, 0.01), Sign(), Target()),
    "reparameterization": (
        50,
        0.002,
        False,
        Backprop(),
        Sign(),
        Reparameterization("surrogate:reparameterization"),
    ),
    "small-n-transfer": (
        *(20, 0.004, False, Backprop(), Sign()),
        OwnSurrogate("surrogate:small-n", UnrolledTransform("softsign")),
    ),
    "own-surrogate": (20, 0.004, False, Average(10), Sign(), OwnSurrogate("surrogate:own-defense")),
    "transfer-standard": (
        18,
        PIXEL,
        False,
        Diverse,
        MomentumSign(1.0),
        Checkpoint("surrogate:standard"),
    ),
    "transfer-adversarial": (
        18,
        PIXEL,
        False,
        Diverse,
        MomentumSign(1.0),
        Checkpoint("surrogate:adversarial"),
    ),
    "fgsm-targeted": (1, "1.0", False, Backprop(), Sign(), Target()),
    "fgm": (1, "1.0", False, Backprop(), UnitRMSD(), Target()),
    "fgm-targeted": (1, "1.0", False, Backprop(), UnitRMSD(), Target()),
    "ifgm": (10, 5 * PIXEL, False, Backprop(), UnitRMSD(), Target()),
    "ifgsm-targeted": (20, "0.75", False, Backprop(), Sign(), Target()),
    "nrfgsm": (1, "1.0", False, Smooth, Sign(), Target()),
    "nrfgm": (1, "1.0", False, Smooth, UnitRMSD(), Target()),
    "nrifgm": (10, 5 * PIXEL, False, Smooth, UnitRMSD(), Target()),
    "nrigsm-targeted": (20, "0.75", False, Smooth, Sign(), Target()),
    "single-pattern": (20, "0.1", False, Backprop(), Sign(), SinglePattern()),
    "ensemble-pattern": (20, "0.1", False, Backprop(), Sign(), EnsemblePattern()),
    "eot": (20, "0.1", False, Average(30), Sign(), Target()),
    "through-defense-eot": (20, "0.1", False, Average(30), Sign(), ThroughDefense()),
    "through-last-eot": (20, "0.1", False, Average(30), Sign(), ThroughDefense(last=3)),
    "eot-l2": (20, "0.1", False, Average(30), Normalized(), Target()),
    "pgd-l2": (20, "0.1", True, Backprop(), Normalized(), Target()),
    "transfer-ensemble": (
        *(18, PIXEL, False, Diverse, MomentumSign(1.0)),
        Ensemble([Checkpoint("surrogate:standard"), Checkpoint("surrogate:adversarial")]),
    ),
}
TARGETED = ("fgsm-targeted", "fgm-targeted", "ifgsm-targeted", "nrigsm-targeted")
OBJECTIVES = {"bpda-i-margin": Margin(), **dict.fromkeys(TARGETED, TargetedCrossEntropy("random"))}
THREATS = dict.fromkeys(
    ("fgm", "fgm-targeted", "ifgm", "nrfgm", "nrifgm"), RMSD(0.0588235294117647)
) | dict.fromkeys(("eot-l2", "pgd-l2"), L2(0.5))
# The paper's start over 5,000 draws: within the threat, and moving 0.031 around it as the paper
# does.
MEAN_STARTS = {"wt-mean-start": (None, 0.031), "wt-mean-start-unrestricted": (0.031, 0.3)}
# Croce & Hein 2020, sections 3 and 4; Andriushchenko et al. 2020 as AutoAttack runs it.
OTHERS = {
    "apgd-ce": (APGD(steps=100), Target()),
    "apgd-dlr": (APGD(steps=100, objective=DLR()), Target()),
    "apgd-margin": (APGD(steps=100, objective=Margin()), Target()),
    "apgd-t-margin": (
        APGD(steps=100, targets=9, objective=TargetedMargin("second")),
        Target(),
    ),
    "apgd-t": (APGD(steps=100, targets=9, objective=TargetedDLR("second")), Target()),
    "wt-apgd": (APGD(steps=100), ClassifierOnly()),
    "wt-apgd-t": (APGD(steps=100, targets=9, objective=TargetedMargin("second")), ClassifierOnly()),
    "fab-t": (FAB(100, 1, 9, 0.1, 1.05, 0.9), Target()),
    "bpda-i-apgd": (APGD(steps=20, gradient=Average(10)), IdentityBackward()),
    "apgd-eot": (APGD(steps=20, gradient=Average(10)), Target()),
    "apgd-eot-margin": (APGD(steps=20, gradient=Average(10), objective=Margin()), Target()),
    "square": (Square(queries=5000, p=0.8, rescale=False, votes=10), Target()),
    "square-quick": (Square(queries=500, p=0.8, rescale=False, votes=10), Target()),
    "through-defense": (APGD(steps=100), ThroughDefense()),
}
# Attacks that only ask: the attack, and what it is told.
QUERIES = {
    "hopskipjump": (HopSkipJump(64, 100, 10_000), "answers (labels)"),
    "genattack": (GenAttack(1000, 4, 0.05, 0.25, 0.3, True, "untargeted", 3), "answers (logits)"),
    "random-noise": (RandomNoise(5000, 10), "answers (logits)"),
}
# Attacks made of attacks: AutoAttack (Croce & Hein 2020, section 6) and others.
EOT = Average(20)
WRAPPERS = {
    "autoattack": Several(
        [APGD(100), APGD(100, targets=9, objective=TargetedDLR("second")), FAB(100), Square(5000)],
        "first",
        30,
    ),
    "autoattack-rand": Several(
        [APGD(100, gradient=EOT), APGD(100, objective=DLR(), gradient=EOT)], "first", 30
    ),
    "apgd-best-of": Several([APGD(100), APGD(100, objective=DLR())], "best", 30),
    "pgd-restarts": Restarts(ProjectedGradient(20, None, 0.1), 10, "first", 30),
    "minimal-norm": MinimalNorm(APGD(30), 10, 30, Linf(1.0)),
}
MARGINS = APGD(100, targets=9, objective=TargetedMargin("second"))
WRAPPERS |= {
    "autoattack-few-classes": Several(
        [APGD(100), APGD(100, objective=Margin()), MARGINS, FAB(100), Square(5000)], "first", 30
    ),
    "autoattack-rand-few-classes": Several(
        [APGD(100, gradient=EOT), APGD(100, objective=Margin(), gradient=EOT)], "first", 30
    ),
}
WRAPPERS |= {
    f"{name}-{way}": WRAPPERS[name]
    for name in WRAPPERS
    if "autoattack" in name
    for way in ("bpda-i", "through-defense")
}
# Attacks without a radius: what bounds them holds any two images, as their papers have it.
ANYWHERE, BOX = L2(1000.0), Linf(1.0)
UNBOUNDED = {
    "cw": (CarliniWagner(1000, 0.01, 0.0, 9, 0.001, True, threat=ANYWHERE), Target()),
    "cw-paper": (CarliniWagner(10_000, 0.01, 0.0, 9, 0.001, True, threat=ANYWHERE), Target()),
    "d-cw": (
        CarliniWagner(250, 0.01, 10.0, 9, 0.001, threat=ANYWHERE, gradient=Diverse(0.5, 0.90606)),
        Target(),
    ),
    "deepfool": (DeepFool(50, 10, 0.02, threat=ANYWHERE), Target()),
    "superdeepfool": (SuperDeepFool(10, 20, 10, 0.02, 10, threat=ANYWHERE), Target()),
    # Rony et al. 2019, section 5; Pintor et al. 2021, as released.
    "ddn": (DDN(100, 1.0, 0.05, threat=ANYWHERE), Target()),
    "fmn-l2": (FMN(100, 1.0, 0.05, threat=ANYWHERE), Target()),
    "fmn-linf": (FMN(100, 1.0, 0.05, threat=BOX), Target()),
    # Ours: docs/strength.md
    "nearest-l2": (NearestBoundary(100, 2.0, 0.05, 0.5, threat=ANYWHERE), Target()),
    "nearest-linf": (NearestBoundary(100, 2.0, 0.05, 0.5, threat=BOX), Target()),
    "liu": (Optimization(100, 4 * PIXEL, 0.0, threat=BOX, objective=WrongProbability()), Target()),
    "liu-ensemble": (
        Optimization(100, 8 * PIXEL, 0.0, True, threat=BOX, objective=WrongProbability()),
        Ensemble(
            [Checkpoint("surrogate:standard"), Checkpoint("surrogate:adversarial")],
            fuse="probabilities",
        ),
    ),
}
NAMES = {*FIGURES, *MEAN_STARTS, *OTHERS, *QUERIES, *UNBOUNDED, *WRAPPERS}


def one(name, *overrides, epsilon=None):
    return scenarios([name], overrides, epsilon)[name]


def test_every_preset_has_its_figures_here():
    assert {path.stem for path in PRESETS} == NAMES


@pytest.mark.parametrize("name", OTHERS)
def test_presets_of_other_loops_hold_their_papers_figures(name):
    scenario = one(name)
    assert (scenario.attack, scenario.source) == OTHERS[name]
    assert scenario.attack.threat == Linf(0.031)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_hold_their_members(name):
    scenario = one(name)
    ways = {"bpda-i": IdentityBackward(), "through-defense": ThroughDefense()}
    source = next((source for way, source in ways.items() if name.endswith(way)), Target())
    assert (scenario.attack, scenario.source) == (WRAPPERS[name], source)
    assert one(name, epsilon=0.1).attack.threat == Linf(0.1)


def test_an_override_names_members_too():
    changed = one("autoattack", ("attacks", "[apgd-ce, square]"), ("attacks.1.queries", "9"))
    assert changed.attack.attacks == [one("apgd-ce").attack, Square(9)]
    with pytest.raises(UserError, match="bpda-i needs robusttrain.attacks.IdentityBackward"):
        one("autoattack", ("attacks", "[bpda-i]"))


@pytest.mark.parametrize("name", MEAN_STARTS)
def test_mean_start_presets_hold_the_papers_figures(name):
    around, epsilon = MEAN_STARTS[name]
    scenario = one(name)
    assert scenario.attack == MeanStart(5000, around, 50, 0.002, threat=Linf(epsilon))
    assert scenario.source == ClassifierOnly()


@pytest.mark.parametrize("name", UNBOUNDED)
def test_presets_without_a_radius_hold_their_papers_figures(name):
    scenario = one(name)
    assert (scenario.attack, scenario.source) == UNBOUNDED[name]
    norm = type(scenario.attack.threat)
    assert one(name, epsilon=0.1).attack.threat == norm(0.1)


@pytest.mark.parametrize("name", QUERIES)
def test_query_presets_hold_the_papers_figures(name):
    scenario = one(name)
    assert (scenario.attack, scenario.knowledge) == QUERIES[name]
    assert (scenario.source, scenario.attack.threat) == (Target(), Linf(0.031))


def test_surrogates_have_recipes():
    for path in PRESETS:
        for name in surrogates_in(presets.read("attack", path.stem)):
            assert presets.read("surrogate", name)


@pytest.mark.parametrize("name", FIGURES)
def test_preset_holds_its_papers_figures(name):
    steps, size, random_start, gradient, rule, source = FIGURES[name]
    scenario = one(name)
    attack = scenario.attack
    assert isinstance(attack, ProjectedGradient)
    assert (attack.steps, attack.random_start, attack.rule) == (steps, random_start, rule)
    objective = OBJECTIVES.get(name, CrossEntropy())
    threat = THREATS.get(name, Linf(0.031))
    assert (attack.threat, attack.objective, scenario.source) == (threat, objective, source)
    if isinstance(size, str):
        assert (attack.relative_step_size, attack.step_size) == (float(size), None)
    else:
        assert attack.step_size == pytest.approx(size, rel=1e-12)
    if gradient is Diverse:
        assert (attack.gradient.probability, attack.gradient.inner) == (0.5, Backprop())
        assert attack.gradient.smallest == pytest.approx(299 / 330, abs=1e-5)
    elif gradient is Smooth:
        assert (attack.gradient.samples, attack.gradient.inner) == (20, Backprop())
        assert attack.gradient.sigma == pytest.approx(15 / 255, rel=1e-12)
    else:
        assert attack.gradient == gradient


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_says_what_it_is_and_runs(preset, curved, images, streams):
    assert preset.read_text().startswith("# ")
    overrides = (
        [("queries", "25")]
        if preset.stem in ("square", "square-quick", "random-noise")
        else [("steps", "1")]
    )
    # The first iterate is the image; these end where they have seen an adversarial one.
    overrides = [("steps", "15")] if preset.stem[:3] in ("ddn", "fmn", "nea") else overrides
    # A step that changes c, and one that crosses the boundary, take more than one
    if "cw" in preset.stem:
        overrides = [
            ("steps", "15"),
            ("search_steps", "1"),
            ("initial_c", "10"),
            ("learning_rate", "0.1"),
        ]
    overrides += [("gradient.draws", "2")] * ("eot" in preset.stem or preset.stem == "bpda-i-apgd")
    overrides += [("draws", "2")] * ("mean-start" in preset.stem)
    if preset.stem in WRAPPERS:
        overrides = [("votes", "2")]
        for number, member in enumerate(getattr(WRAPPERS[preset.stem], "attacks", [])):
            overrides.append(
                (f"attacks.{number}.queries", "9")
                if isinstance(member, Square)
                else (f"attacks.{number}.steps", "1")
            )
            overrides += [(f"attacks.{number}.gradient.draws", "2")] * ("rand" in preset.stem)
        overrides += [("attack.steps", "1")] * (preset.stem in ("pgd-restarts", "minimal-norm"))
    attack = one(preset.stem, *overrides).attack
    x = images()
    source = ClassifierOnly()(
        DefendedClassifier(AdversarialTransform(curved(seed=1), steps=1), curved())
    )
    result = attack(source, x, curved()(x).argmax(1), streams())
    assert 0 < attack.threat.distance(result, x).max() <= attack.threat.epsilon + 1e-6


def test_suites_name_presets_that_exist():
    for path in (CONFIGS / "suite").glob("*.yaml"):
        assert set(suite(path.stem)) <= NAMES


def test_an_override_reaches_every_attack_or_the_named_one():
    both = scenarios(["ifgsm", "bpda-eot"], [("steps", "3")])
    assert [scenario.attack.steps for scenario in both.values()] == [3, 3]
    both = scenarios(["ifgsm", "bpda-eot"], [("bpda-eot.steps", "3")])
    assert [scenario.attack.steps for scenario in both.values()] == [18, 3]
    both = scenarios(["ifgsm", "bpda-eot"], [("steps", "4"), ("bpda-eot.gradient.draws", "7")])
    assert [scenario.attack.steps for scenario in both.values()] == [4, 4]
    assert both["bpda-eot"].attack.gradient == Average(7)
    assert both["ifgsm"].attack == one("ifgsm", ("steps", "4")).attack


@pytest.mark.parametrize(
    ("name", "overrides", "read", "expected"),
    [
        ("fgsm", [("random_start", "true")], lambda found: found.attack.random_start, True),
        ("fgsm", [("relative_step_size", "0.5")], lambda found: found.attack.alpha, 0.0155),
        (
            "ifgsm",
            [("step_size", "null"), ("relative_step_size", "1")],
            lambda found: found.attack.alpha,
            0.031,
        ),
        ("ifgsm", [("threat.epsilon", "0.1")], lambda found: found.attack.threat, Linf(0.1)),
        (
            "ifgsm",
            [("threat.clip", "false")],
            lambda found: found.attack.threat,
            Linf(0.031, clip=False),
        ),
        (
            "ifgsm",
            [
                ("threat.class_path", "robusttrain.attacks.L2"),
                ("rule.class_path", "robusttrain.attacks.Normalized"),
            ],
            lambda found: (found.attack.threat, found.attack.rule),
            (L2(), Normalized()),
        ),
        ("mifgsm", [("rule.decay", "0.5")], lambda found: found.attack.rule, MomentumSign(0.5)),
        ("nrigsm", [("gradient.sigma", "0.2")], lambda found: found.attack.gradient.sigma, 0.2),
        (
            "bpda-eot",
            [
                ("gradient.inner.class_path", "robusttrain.attacks.Smooth"),
                ("gradient.inner.samples", "3"),
            ],
            lambda found: found.attack.gradient,
            Average(10, Smooth(3)),
        ),
        (
            "pgd",
            [("source.class_path", "robusttrain.attacks.ClassifierOnly")],
            lambda found: found.source,
            ClassifierOnly(),
        ),
        ("pgd", [("knows", "labels")], lambda found: found.knowledge, "labels"),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else None,
)
def test_overrides_reach_every_part(name, overrides, read, expected):
    found = read(one(name, *overrides))
    assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_epsilon_reaches_every_attack():
    found = scenarios([*FIGURES, *OTHERS, *QUERIES], epsilon=0.1)
    assert {scenario.attack.threat for scenario in found.values()} == {
        Linf(0.1),
        RMSD(0.1),
        L2(0.1),
    }
    assert found["fgsm"].attack.alpha == pytest.approx(0.1)


def test_a_preset_of_another_norm_has_that_norms_own_radius(tmp_path):
    """The default threat is Linf(0.031): its radius must not become that of an L2 ball."""
    file = tmp_path / "l2.yaml"
    threat = "threat: {class_path: robusttrain.attacks.L2}"
    rule = "rule: {class_path: robusttrain.attacks.Normalized}"
    file.write_text(
        "class_path: robusttrain.attacks.ProjectedGradient\ninit_args: {step_size: 0.1,"
        f" {threat}, {rule}}}\n"
    )
    assert scenarios([str(file)])["l2"].attack.threat == L2()


def test_epsilon_reaches_an_attack_that_leaves_its_threat_at_the_default(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text(
        "class_path: robusttrain.attacks.ProjectedGradient\ninit_args: {steps: 3, step_size:"
        " 0.01}\n"
    )
    assert scenarios([str(file)])["short"].attack == ProjectedGradient(3, 0.01)
    assert scenarios([str(file)])["short"].source == Target()
    assert scenarios([str(file)], epsilon=0.1)["short"].attack == ProjectedGradient(
        3, 0.01, threat=Linf(0.1)
    )


@pytest.mark.parametrize(
    ("names", "overrides", "words"),
    [
        (["pdg"], [], "did you mean pgd"),
        (["pgd"], [("step", "3")], "pgd"),
        (["pgd"], [("steps", "many")], r"--attack\.pgd\.steps"),
        (["pgd"], [("steps", "-1")], r"--attack\.pgd\.steps = -1: must be at least 0"),
        (["pgd"], [("threat.epsilon", "-1")], r"--attack\.pgd\.threat\.epsilon = -1"),
        (["bpda-eot"], [("gradient.draws", "0")], r"--attack\.bpda-eot\.gradient\.draws = 0"),
        (["pgd"], [("rule.class_path", "robusttrain.attacks.Linf")], "rule"),
        (
            ["wt"],
            [("pgd.steps", "3")],
            r"^--attack.pgd.steps 3: pgd is not among the attacks \(wt\)",
        ),
        (["nowhere.yaml"], [], "no such file"),
    ],
)
def test_mistakes_are_one_line_that_names_the_option(names, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        scenarios(names, overrides)
    assert "\n" not in str(caught.value)


def test_attacks_and_suites_are_taken_out_of_a_command_line():
    chosen = [
        "--attack",
        "pgd",
        "--attack.steps=5",
        "--suite",
        "bpda",
        "--attack=fgsm",
        "--attack",
        "pgd",
    ]
    names, overrides, rest = split_attacks(["--seed", "3", *chosen, "--attack.wt.steps", "2"])
    assert names == ["pgd", "bpda-i", "bpda-eot", "wt", "fgsm"]
    assert overrides == [("steps", "5"), ("wt.steps", "2")]
    assert rest == ["--seed", "3"]


def test_one_kind_of_step_size_takes_the_place_of_the_other():
    attack = scenarios(["ifgsm"], [("relative_step_size", "0.1")])["ifgsm"].attack
    assert (attack.step_size, attack.relative_step_size) == (None, 0.1)


@pytest.mark.parametrize("text", ["1e-05", "0.00001"])
def test_one_radius_given_twice_is_one(text):
    """YAML takes 1e-05 for a text."""
    assert attack_nodes(["fgsm"], [("threat.epsilon", text)], 1e-5)
