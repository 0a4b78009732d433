"""Suites: which attacks apply to which targets, and what is told of the others."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robusttrain import load
from robusttrain.attacks import L2, MomentumNormalized
from robusttrain.attacks.sources.surrogates import surrogates_in
from robusttrain.config import presets
from robusttrain.config.attacks import attack_nodes, scenario, scenarios, split_attacks
from robusttrain.config.evaluation import read_plan
from robusttrain.config.suites import (
    FACTS,
    FEWER_CLASSES,
    entries,
    left_out,
    refuse_few_classes,
    suite,
    suite_settings,
)
from robusttrain.core.errors import UserError
from robusttrain.data import Digits, ImageNet
from robusttrain.data.base import Facts
from robusttrain.defenses import (
    JPEG,
    AdversarialTransform,
    AntiAdversary,
    Chain,
    Defense,
    Diffusion,
    Hedge,
    RandomResizePad,
    Vote,
)
from robusttrain.evaluation import Engine
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.models import NoiseNetwork
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.evaluating import fitted


class Rounded(Defense):
    """Rounds pixels: deterministic, and nothing to differentiate."""

    differentiable = False

    def transform(self, images, rng):
        return (images * 15).round() / 15


class Shrunk(Rounded):
    """Takes a row and a column away."""

    def transform(self, images, rng):
        return super().transform(images[..., 1:, 1:], rng)


def data(classes: int = 10, trains: bool = True) -> SimpleNamespace:
    first = SimpleNamespace(images=torch.zeros(2, 3, 8, 8))
    facts = Facts(classes, 3, 8)
    return SimpleNamespace(facts=lambda: facts, trains=trains, first_test_batch=lambda: first)


@pytest.fixture
def targets(convnet):
    """One of each kind, by name; the classifier takes images of any size but for the last."""

    def g(**options):
        return AdversarialTransform(convnet(10, seed=1), radius=0.05, steps=2, **options)

    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 10))
    return {
        "undefended": DefendedClassifier(None, convnet(10)),
        "advtransform": DefendedClassifier(g(), convnet(10)),
        "advtransform without a random start": DefendedClassifier(
            g(random_start=False), convnet(10)
        ),
        "rounded": DefendedClassifier(Rounded(), convnet(10)),
        "jpeg": DefendedClassifier(JPEG(), convnet(10)),
        "randomization": DefendedClassifier(RandomResizePad(8, 12), convnet(10)),
        "votes": DefendedClassifier(
            Chain([JPEG(), Vote(RandomResizePad(8, 12), 2)]), convnet(10)
        ).eval(),
        "both": DefendedClassifier(Chain([RandomResizePad(8, 12), g()]), convnet(10)),
        "anti-adversary": DefendedClassifier(AntiAdversary(), convnet(10)),
        "hedge": DefendedClassifier(Hedge(steps=2), convnet(10)),
        "diffusion": DefendedClassifier(Diffusion(NoiseNetwork(width=8), steps=2), convnet(10)),
        "a classifier of one size": DefendedClassifier(RandomResizePad(8, 12), fixed),
    }


ALONE = ["wt", "wt-apgd", "wt-apgd-t"]
TRANSFER = ["transfer-standard", "transfer-adversarial", "transfer-ensemble"]
QUERY = ["random-noise", "square", "genattack", "hopskipjump"]
EOT = ["bpda-i-momentum", "bpda-eot", "bpda-i-margin", "average-logits", "bpda-i-apgd"]
UNROLLED = ["automatic-differentiation", "bpda-softsign", "bpda-tanh"]
LOOP = ["fewer-steps", "small-n-transfer", "own-surrogate", *UNROLLED]
APPLYING = {
    "undefended": [*TRANSFER, "apgd-ce", "autoattack", *QUERY],
    "advtransform": [
        *(*ALONE, *TRANSFER, "reparameterization", "bpda-i", "fixed-randomness", *EOT, *LOOP),
        *("finite-differences", "autoattack-rand-bpda-i", "wt-mean-start", *QUERY),
    ],
    "advtransform without a random start": [
        *(
            *ALONE,
            *TRANSFER,
            "reparameterization",
            "bpda-i",
            *LOOP,
            "finite-differences",
            "autoattack-bpda-i",
            *QUERY,
        ),
    ],
    "rounded": [
        *(
            *ALONE,
            *TRANSFER,
            "reparameterization",
            "bpda-i",
            "finite-differences",
            "autoattack-bpda-i",
            *QUERY,
        )
    ],
    "jpeg": [
        *(*ALONE, *TRANSFER, "reparameterization", "bpda-i", "bpda-twin", "finite-differences"),
        *("autoattack-bpda-i", *QUERY),
    ],
    "votes": [
        *(*ALONE, *TRANSFER, "single-pattern", "ensemble-pattern", "bpda-i", "fixed-randomness"),
        *(*EOT, "bpda-twin-eot", "finite-differences", "autoattack-rand-bpda-i", *QUERY),
    ],
    "randomization": [
        *ALONE,
        *TRANSFER,
        "single-pattern",
        "ensemble-pattern",
        "eot",
        "autoattack-rand",
        *QUERY,
    ],
    # A chain has the traits of its parts; its derivative is the identity where g stands.
    "both": [
        *(*ALONE, *TRANSFER, "single-pattern", "ensemble-pattern", "bpda-i", "fixed-randomness"),
        *(*EOT, *LOOP, "finite-differences", "autoattack-rand-bpda-i", *QUERY),
    ],
    # They search, and on no f_b that could be imitated.
    "anti-adversary": [
        *(*ALONE, *TRANSFER, "reparameterization", "bpda-i", "fewer-steps", *UNROLLED),
        *("finite-differences", "autoattack-bpda-i", *QUERY),
    ],
    "hedge": [
        *(*ALONE, *TRANSFER, "reparameterization", "bpda-i", "fixed-randomness", *EOT),
        *("fewer-steps", *UNROLLED, "finite-differences", "autoattack-rand-bpda-i"),
        *("wt-mean-start", *QUERY),
    ],
    # Steps that follow no gradient, with a derivative of their own.
    "diffusion": [
        *(*ALONE, *TRANSFER, "through-defense-eot", "through-last-eot"),
        *("autoattack-rand-through-defense", "wt-mean-start", *QUERY),
    ],
    "a classifier of one size": [
        *(*TRANSFER, "single-pattern", "ensemble-pattern", "eot", "autoattack-rand", *QUERY),
    ],
}


def applying(name: str, target: DefendedClassifier, images) -> list[str]:
    return [attack for attack in suite(name) if attack not in left_out([name], [], target, images)]


@pytest.mark.parametrize("kind", APPLYING)
def test_the_worst_case_takes_what_applies_and_all_of_it_fits(kind, targets):
    """The rule table by hand; and every source can be built and asked, so nothing fails after
    hours.
    """
    target = targets[kind]
    assert applying("worst-case", target, data()) == APPLYING[kind]
    at_hand = [name for name in APPLYING[kind] if not surrogates_in(presets.read("attack", name))]
    engine = Engine(target, scenarios(at_hand, epsilon=0.031))
    for source in engine.sources.values():
        assert source(torch.full((2, 3, 8, 8), 0.5)).shape == (2, 10)


@pytest.mark.parametrize("kind", APPLYING)
def test_the_quick_suite_has_something_for_every_target_and_little(kind, targets):
    found = applying("quick", targets[kind], data())
    assert set(found) & {"pgd-quick", "bpda-i-quick", "wt"}
    engine = Engine(targets[kind], scenarios(found, epsilon=0.031))
    assert sum(scenario.attack.cost().gradients for scenario in engine.scenarios.values()) < 1000


def test_the_data_decide_too(targets):
    target = targets["undefended"]
    assert applying("worst-case", target, data(trains=False)) == ["apgd-ce", "autoattack", *QUERY]
    few = [*TRANSFER, "apgd-ce", "autoattack-few-classes", *QUERY]
    assert applying("worst-case", target, data(classes=3)) == few
    around = [name for name in APPLYING["advtransform"] if name != "autoattack-rand-bpda-i"]
    found = applying("worst-case", targets["advtransform"], data(classes=2))
    assert {*found} - {*around} == {"autoattack-rand-few-classes-bpda-i"}
    margins = ["apgd-ce", "apgd-margin", "apgd-t-margin", "fab-t", "square"]
    assert applying("autoattack", target, data(classes=2)) == margins
    assert applying("autoattack", target, data()) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (Digits.trains, ImageNet.trains) == (True, False)


def test_reasons_say_all_that_does_not_hold(targets):
    why = left_out(["worst-case"], [], targets["undefended"], data())
    assert why["wt"] == "the target has no defense"
    assert why["bpda-i"] == "the target has no defense without a useful gradient"
    assert (
        why["bpda-eot"]
        == "the target has no defense without a useful gradient, and the target is not random"
    )
    assert left_out(["worst-case"], [], targets["rounded"], data())["apgd-ce"] == (
        "the target's defense has no useful gradient"
    )
    assert left_out(["worst-case"], [], targets["both"], data())["wt-mean-start"] == (
        "the defense changes the size of images"
    )
    shrinking = DefendedClassifier(Shrunk(), targets["both"].classifier)
    assert left_out(["worst-case"], [], shrinking, data())["bpda-i"] == (
        "what has no derivative changes the size of images"
    )


def test_asking_for_facts_leaves_the_target_as_it_was(targets):
    target, state = targets["advtransform"].train(), torch.get_rng_state()
    for fact in FACTS.values():
        fact.holds(target, data())
    assert target.training
    assert target.classifier.training
    assert torch.equal(torch.get_rng_state(), state)


def written(folder, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def test_an_attack_applies_if_one_of_its_entries_does_or_if_it_is_asked_for(tmp_path, targets):
    one = written(
        tmp_path,
        "attacks: [{attack: wt, when: {defended: true}}, {attack: pgd, when: {random: true}}]",
    )
    two = written(tmp_path, "attacks: [{attack: wt, when: {defended: false}}, square]", "two")
    target = targets["undefended"]
    assert set(left_out([one, two], [], target, data())) == {"pgd"}
    assert left_out([one, two], ["pgd"], target, data()) == {}
    assert left_out([], ["pgd"], target, data()) == {}
    with pytest.raises(
        UserError, match="no attack applies, because .*the target is not random"
    ) as caught:
        left_out([one], [], target, data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "attacks: [{attack: wt, when: {defend: true}}]",
            "no condition defend; did you mean defended",
        ),
        (
            "attacks: [{attack: wt, when: {defended: maybe}}]",
            "condition defended = 'maybe': must be true or false",
        ),
        ("attacks: [{attack: wt, if: {defended: true}}]", "must be a preset's name, or"),
        ("attacks: [{when: {defended: true}}]", "must be a preset's name, or"),
        ("attacks: [{attack: wt, when: [defended]}]", "must be a preset's name, or"),
        ("attacks: []", "must hold a list of presets"),
        ("attacks: wt", "must hold a list of presets"),
        (
            "attacks: [wt]\nsurvivers: true",
            "no option survivers of a suite; did you mean survivors",
        ),
        (
            "attacks: [wt]\nzzz: 1",
            "no option zzz of a suite; a suite may say attacks and survivors",
        ),
    ],
)
def test_mistakes_in_a_suite_are_one_line(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=words) as caught:
        entries(path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


def test_settings():
    assert suite_settings("quick") == {"survivors": True, "images": 200}
    assert suite_settings("query") == {}
    assert suite("query") == QUERY
    assert suite_settings("transfer") == {"epsilon": 0.0588235294117647}
    named, _, rest = split_attacks(["--suite", "transfer", "--epsilon", "0.1"])
    assert "fgsm" in named
    assert rest == ["--epsilon=0.0588235294117647", "--epsilon", "0.1"]  # the last one counts


def test_what_is_said_of_an_attack_counts_more_than_a_suites_radius(tmp_path):
    far = written(tmp_path, "epsilon: 0.2\nattacks: [pgd-quick, fgsm]")

    def found(*arguments):
        plan = read_plan(["--checkpoint", "digits-standard", "--suite", far, *arguments])
        radii = [scenario(node, name).attack.threat.epsilon for name, node in plan.attacks.items()]
        return plan.epsilon, radii

    assert found() == (0.2, [0.2, 0.2])
    assert found("--epsilon", "0.1") == (0.1, [0.1, 0.1])
    assert found("--attack.threat.epsilon", "0.01") == (None, [0.01, 0.01])
    assert found("--attack.fgsm.threat.epsilon", "0.01") == (None, [0.2, 0.01])


@pytest.mark.parametrize(
    "key", ["threat", "threat.class_path", "pgd.threat", "pgd.threat.class_path"]
)
def test_a_part_by_its_class_alone_keeps_it_whatever_is_said_inside(key):
    """`--attack.threat L2 --epsilon 0.5` is no attack in Linf 0.5."""
    for overrides, epsilon in (
        ([(key, "L2")], 0.5),
        ([(key, "L2"), ("threat.epsilon", "0.5")], None),
        ([("pgd.threat.epsilon", "0.5"), (key, "L2")], None),
        ([("threat.epsilon", "0.5"), (key, "L2"), ("rule", "Normalized")], None),
    ):
        (found,) = scenarios(["pgd"], overrides, epsilon).values()
        assert (found.attack.threat.norm, found.attack.threat.epsilon) == ("l2", 0.5)
        assert type(found.attack.rule).__name__ == "Normalized"
    (own,) = scenarios(["pgd"], [(key, "L2")]).values()
    assert own.attack.threat == L2(), "its own radius, not that of Linf"
    mine = {"mine": {"like": "square", "init_args": {"threat": "L2"}}}
    (own,) = scenarios(mine).values()
    assert own.attack.threat == L2()
    # Where the preset says nothing of the part, and where a mapping names it.
    (square,) = scenarios(["square"], [("threat", "L2")], 0.5).values()
    assert (square.attack.threat.norm, square.attack.threat.epsilon) == ("l2", 0.5)
    mine = {"mine": {"like": "square", "init_args": {"threat": "L2"}}}
    (square,) = scenarios(mine, [], 0.5).values()
    assert (square.attack.threat.norm, square.attack.threat.epsilon) == ("l2", 0.5)
    asked = [("gradient", "Average"), ("gradient.draws", "3")]
    (pgd,) = scenarios(["pgd"], asked).values()
    assert pgd.attack.gradient.draws == 3


@pytest.mark.parametrize("key", ["threat", "threat.class_path"])
@pytest.mark.parametrize("path", ["L2", "robusttrain.attacks.L2"])
def test_rules_follow_a_threat_by_any_name(path, key):
    moved = [(key, path)]
    own = {"mine": {"class_path": "robusttrain.attacks.ProjectedGradient"}}
    for names in (["pgd"], own):
        (found,) = scenarios(names, moved).values()
        assert type(found.attack.rule).__name__ == "Normalized"
    (momentum,) = scenarios(["mifgsm"], moved).values()
    assert type(momentum.attack.rule).__name__ == "MomentumNormalized"
    assert momentum.attack.rule.decay == 1.0
    (slower,) = scenarios(["mifgsm"], [*moved, ("rule.decay", "0.5")]).values()
    assert slower.attack.rule == MomentumNormalized(0.5)
    (back,) = scenarios(["mifgsm"], [*moved, ("rule", "MomentumNormalized")]).values()
    assert back.attack.rule == MomentumNormalized()


def test_another_threat_brings_its_own_rule_and_steps_go_by_attack():
    class_path = "robusttrain.attacks.L2"
    moved = attack_nodes(["pgd", "pgd-l2"], [("pgd.threat.class_path", class_path)], 0.5)
    for name in ("pgd", "pgd-l2"):
        assert moved[name]["init_args"]["rule"]["class_path"].endswith("Normalized")
    asked = [("threat.class_path", class_path), ("rule.class_path", "robusttrain.attacks.Adam")]
    assert attack_nodes(["pgd"], asked)["pgd"]["init_args"]["rule"]["class_path"].endswith("Adam")
    sizes = [("pgd.step_size", "0.01"), ("fgsm.relative_step_size", "0.5")]
    found = scenarios(["pgd", "fgsm"], sizes)
    assert found["pgd"].attack.alpha == 0.01
    assert found["fgsm"].attack.relative_step_size == 0.5


@pytest.mark.parametrize("key", ["threat", "threat.class_path", "bpda-i.threat"])
def test_in_another_norm_a_step_keeps_its_share_of_the_radius(key):
    """50 steps of 0.002 reach a fifth of an L2 ball of 0.5; of Linf 0.031 they go 3.2 radii."""
    (found,) = scenarios(["bpda-i"], [(key, "L2")], 0.5).values()
    assert found.attack.alpha == pytest.approx(0.5 * 0.002 / 0.031)
    assert found.attack.alpha == pytest.approx(
        scenarios(["bpda-i"])["bpda-i"].attack.within(L2(0.5)).alpha
    )
    for size in ("step_size", "bpda-i.step_size"):  # what is said counts
        (said,) = scenarios(["bpda-i"], [(key, "L2"), (size, "0.03")], 0.5).values()
        assert said.attack.alpha == 0.03
    (same,) = scenarios(["bpda-i"], [(key, "Linf")], 0.5).values()
    assert same.attack.alpha == 0.002
    # A preset may name its threat by the class alone: the radius is the class's own.
    mine = {"mine": {"like": "bpda-i", "init_args": {"threat": "Linf"}}}
    (bare,) = scenarios(mine, [(key.removeprefix("bpda-i."), "L2")], 0.5).values()
    assert bare.attack.alpha == found.attack.alpha
    # Of FMN, whose steps are Euclidean in either norm, nothing changes.
    (fmn,) = scenarios(["fmn-linf"], [("threat", "L2")], 1.0).values()
    assert fmn.attack.step_size == scenarios(["fmn-linf"])["fmn-linf"].attack.step_size


def test_what_knows_no_such_norm_is_left_out_of_suites():
    """`--suite worst-case --attack.threat L2` was refused for GenAttack."""
    ask = ["--checkpoint", "digits-standard", "--attack.threat"]
    plan = read_plan([*ask, "L2", "--suite", "query"])
    assert [*plan.attacks] == ["random-noise", "square", "hopskipjump"]
    assert plan.unfit == {
        "genattack": "the threat must be Linf: mutation ranges are those of a cube"
    }
    assert EvaluationPlan.from_json(plan.to_json()) == plan
    target, digits = DefendedClassifier(None, load("digits-standard").classifier), Digits()
    digits.setup("test")
    said = []
    subject = fitted(plan, target, "digits", digits, said.append)
    assert subject.unfit == plan.unfit
    assert said == [f"left out: genattack, because {plan.unfit['genattack']}"]
    assert read_plan([*ask, "Linf", "--suite", "query"]).unfit is None
    # Whoever names it is told, and so is whoever is left without any.
    for asked in (["--suite", "query", "--attack", "genattack"], ["--attack", "genattack"]):
        with pytest.raises(UserError, match=r"genattack\.threat = L2.*must be Linf"):
            read_plan([*ask, "L2", *asked])
    with pytest.raises(UserError, match=r"threat = RMSD.*must be of a norm that Square knows"):
        read_plan([*ask, "RMSD", "--suite", "autoattack"])


def test_where_conditions_and_the_threat_leave_nothing_that_is_said():
    ask = ["--checkpoint", "digits-standard", "--suite", "test-time-autoattack"]
    plan = read_plan([*ask, "--attack.threat", "RMSD"])
    digits = Digits()
    digits.setup("test")
    target = DefendedClassifier(None, load("digits-standard").classifier)
    with pytest.raises(UserError, match=r"no attack applies, because .*of a norm that APGD knows"):
        fitted(plan, target, "digits", digits, lambda line: None)


def test_what_needs_more_classes_is_refused_with_what_to_take_instead():
    for name, instead in FEWER_CLASSES.items():
        with pytest.raises(UserError, match=f"--attack {name}: .*take --attack {instead}$"):
            refuse_few_classes(scenarios([name], epsilon=0.031), 2)
        refuse_few_classes(scenarios([instead], epsilon=0.031), 2)
        refuse_few_classes(scenarios([name], epsilon=0.031), 4)
    with pytest.raises(UserError, match="has 1 class"):
        refuse_few_classes({}, 1)


def test_suites_that_set_an_option_differently_are_refused_unless_it_is_given(tmp_path):
    for name, epsilon in (("s1", 0.01), ("s2", 0.3)):
        content = f"attacks: [fgsm]\nepsilon: {epsilon}\nsurvivors: true\n"
        (tmp_path / f"{name}.yaml").write_text(content)
    both = [f"--suite={tmp_path}/s1.yaml", f"--suite={tmp_path}/s2.yaml"]
    said = r"^--suite \S*s2.yaml: sets epsilon 0.3, and \S*s1.yaml 0.01: give --epsilon$"
    with pytest.raises(UserError, match=said):
        split_attacks(both)
    for given in (["--epsilon", "0.1"], ["--epsilon=0.1"]):
        assert split_attacks([*both, *given])[0] == ["fgsm"]
    assert split_attacks(both, [{"epsilon": 0.1}])[0] == ["fgsm"]
    assert split_attacks([both[0], both[0]])[0] == ["fgsm"]
    split_attacks(["--suite", "worst-case", "--suite", "test-time-quick", "--suite=quick"])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError, KeyError])
def test_a_classifier_refuses_other_sizes_by_any_error(error, targets):
    class OfOneSize(nn.Linear):
        def forward(self, images):
            if images.shape[-1] != 12:
                raise error("only 12 pixels")
            return super().forward(images.flatten(1))

    target = DefendedClassifier(RandomResizePad(8, 12), OfOneSize(3 * 12 * 12, 10))
    found = applying("worst-case", target, data())
    assert found == applying("worst-case", targets["a classifier of one size"], data())
