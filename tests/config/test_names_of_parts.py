"""A preset's name works wherever a part is named: on the command line, in --config files, in
Python.
"""

import pytest
import yaml

from robusttrain.config import evaluation, presets, reparameterization, training
from robusttrain.config.build import build
from robusttrain.core.errors import UserError

NETWORK = {"model": "mlp", "weights": "mlp.safetensors", "data": "digits"}


@pytest.fixture(params=["file", "python"])
def planned(request, tmp_path):
    """The plan of a module, from a configuration in a file or from Python, and a command line."""

    def plan(module, said, *arguments):
        if request.param == "python":
            return module.read_plan(arguments, [said])
        file = tmp_path / "said.yaml"
        file.write_text(yaml.safe_dump(said, sort_keys=False))
        return module.read_plan([f"--config={file}", *arguments])

    return plan


def holds(found, expected):
    """Whether a checked configuration holds all that a preset says."""
    if isinstance(expected, dict):
        return all(key in found and holds(found[key], item) for key, item in expected.items())
    return found == expected


def test_parts_of_an_evaluation(planned):
    plan = planned(evaluation, {**NETWORK, "defense": "advtransform", "attack": "pgd"})
    assert plan == evaluation.read_plan(
        [
            *("--model", "mlp", "--weights", "mlp.safetensors", "--data", "digits"),
            *("--defense", "advtransform", "--attack", "pgd"),
        ]
    )
    assert plan.model["class_path"] == "robusttrain.models.MLP"
    assert holds(plan.defense, presets.read("defense", "advtransform")["defense"])
    assert plan.attacks == {"pgd": presets.read("attack", "pgd")}


def test_attacks_by_names_of_their_own(planned):
    mine = {
        "mine": "pgd-quick",
        "longer": {"like": "pgd-quick", "init_args": {"steps": 7}},
        "worst": {
            "class_path": "robusttrain.attacks.Several",
            "init_args": {"attacks": ["pgd-quick", {"like": "fgsm", "init_args": {}}]},
        },
    }
    plan = planned(
        evaluation, {**NETWORK, "attack": "fgsm", "attacks": mine}, "--attack.mine.steps=3"
    )
    quick = presets.read("attack", "pgd-quick")
    assert list(plan.attacks) == ["fgsm", "mine", "longer", "worst"]
    assert plan.asked == ["fgsm", "mine", "longer", "worst"]
    assert plan.attacks["mine"]["init_args"] == {**quick["init_args"], "steps": 3}
    assert plan.attacks["longer"]["init_args"] == {**quick["init_args"], "steps": 7}
    members = plan.attacks["worst"]["init_args"]["attacks"]
    assert [member["class_path"] for member in members] == [
        presets.read("attack", name)["class_path"] for name in ("pgd-quick", "fgsm")
    ]


def test_parts_of_a_training(planned):
    said = {"data": "digits", "model": "mlp", "defense": "advtransform", "training": "trades"}
    plan = planned(training, said)
    assert plan == training.read_plan([f"--{kind}={name}" for kind, name in said.items()])
    assert plan.training["objective"]["init_args"]["beta"] == 6.0


def test_what_a_training_preset_says_besides_comes_along_and_the_file_overrides_it(planned):
    free = presets.read("training", "free")
    assert planned(training, {"training": "free"}).trainer["max_epochs"] == 10
    plan = planned(training, {"training": "free", "trainer": {"max_epochs": 2}}, "--seed=3")
    assert (plan.trainer["max_epochs"], plan.seed) == (2, 3)
    assert holds(plan.training, free["training"])


def test_like_a_preset(planned):
    said = {
        "model": {"like": "mlp", "init_args": {"width": 7}},
        "training": {
            "like": "trades",
            "learning_rate": 0.5,
            "objective": {"init_args": {"beta": 1}},
        },
    }
    plan = planned(training, said, "--training.momentum=0.25")
    assert (plan.model["init_args"]["width"], plan.model["init_args"]["depth"]) == (7, 2)
    assert plan.training["learning_rate"], plan.training["momentum"] == (0.5, 0.25)
    assert plan.training["objective"]["init_args"]["beta"] == 1
    assert plan.training["weight_decay"] == 0.0005


def test_names_inside_of_parts(planned):
    said = {
        "defense": {
            "class_path": "robusttrain.defenses.Chain",
            "init_args": {
                "defenses": [
                    {"like": "advtransform", "init_args": {"model": "mlp"}},
                    "randomization",
                ]
            },
        },
        "training": {
            "objective": {
                "class_path": "robusttrain.training.Adversarial",
                "init_args": {"attack": "bpda-i"},
            }
        },
    }
    plan = planned(training, said)
    first, second = plan.defense["init_args"]["defenses"]
    assert first["init_args"]["model"]["class_path"] == "robusttrain.models.MLP"
    assert holds(second, presets.read("defense", "randomization")["defense"])
    inner = plan.training["objective"]["init_args"]
    expected = presets.read("attack", "bpda-i")
    assert holds(inner["source"], expected["source"])
    assert holds(inner["attack"], {key: expected[key] for key in ("class_path", "init_args")})


def test_names_inside_of_parts_on_the_command_line():
    plan = training.read_plan(
        [
            *("--defense", "advtransform", "--defense.model", "mlp", "--defense.model.width", "9"),
            *("--training", "adversarial-awp", "--training.objective.objective", "trades"),
            *("--training.objective.objective.attack", "pgd-quick"),
            *("--training.objective.objective.attack.steps", "4"),
        ]
    )
    f_b = plan.defense["init_args"]["model"]
    assert (f_b["class_path"], f_b["init_args"]["width"]) == ("robusttrain.models.MLP", 9)
    inner = plan.training["objective"]["init_args"]["objective"]
    assert inner["class_path"] == "robusttrain.training.TRADES"
    assert inner["init_args"]["beta"] == 6.0
    quick = presets.read("attack", "pgd-quick")["init_args"]
    assert holds(inner["init_args"]["attack"]["init_args"], {**quick, "steps": 4})


def test_a_named_part_replaces_whole_what_an_earlier_file_said(tmp_path):
    for name, said in (
        ("one", {"model": {"like": "mlp", "init_args": {"width": 7}}}),
        ("two", {"model": "mlp"}),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    files = [f"--config={tmp_path / name}.yaml" for name in ("one", "two")]
    assert training.read_plan(files).model["init_args"]["width"] == 500


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"model": "mpl"}, ("model", "mpl", "did you mean mlp")),
        ({"training": "tradez"}, ("training", "did you mean trades")),
        ({"training": {"like": "tradez"}}, ("training", "did you mean trades")),
        (
            {"defense": {"like": "advtransform", "init_args": {"model": "mpl"}}},
            ("--defense.model", "mpl", "did you mean mlp"),
        ),
        (
            {"training": {"like": "trades", "objective": {"init_args": {"attack": "pgd-quik"}}}},
            ("--training.objective.attack", "pgd-quik", "did you mean pgd-quick"),
        ),
        (
            {"training": {"objective": "standart"}},
            ("--training.objective", "standart", "did you mean standard"),
        ),
    ],
)
def test_a_name_that_is_none_gets_the_nearest_one(planned, said, told):
    with pytest.raises(UserError) as caught:
        planned(training, said)
    assert "\n" not in str(caught.value)
    for each in told:
        assert each in str(caught.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"attack": "pdg"}, ("pdg", "did you mean pgd")),
        ({"attacks": {"mine": "pdg"}}, ("--attack.mine pdg", "did you mean pgd")),
        ({"attacks": {"mine": {"steps": 3}}}, ("attack.mine", "class_path")),
        ({"data": "digit"}, ("data", "did you mean digits")),
    ],
)
def test_also_in_an_evaluation(planned, said, told):
    with pytest.raises(UserError) as caught:
        planned(evaluation, {**NETWORK, **said})
    for each in told:
        assert each in str(caught.value)


def test_a_file_names_suites_and_sets_what_they_would(planned):
    plan = planned(evaluation, {**NETWORK, "suite": "quick"})
    assert (plan.images, plan.survivors, plan.suites, plan.asked) == (200, True, ["quick"], [])
    plan = planned(evaluation, {**NETWORK, "suite": "quick", "images": 50, "survivors": False})
    assert (plan.images, plan.survivors) == (50, False)
    plan = planned(evaluation, {**NETWORK, "suite": "quick", "images": 50}, "--attack", "fgsm")
    assert (list(plan.attacks), plan.images, plan.suites) == (["fgsm"], 50, [])


def test_the_training_of_h_from_a_file(tmp_path):
    file = tmp_path / "h.yaml"
    file.write_text("training: reparameterization\n")
    assert reparameterization.chosen([f"--config={file}"])
    assert not reparameterization.chosen([f"--config={file}", "--training=trades"])


QUICK = "--training.objective.attack=pgd-quick"


@pytest.mark.parametrize(
    "line",
    [
        ["--training.objective=robusttrain.training.Adversarial", QUICK],
        ["--training=adversarial", QUICK],
        ["--training=trades", QUICK],
        ["--training=adversarial", "--training.objective=robusttrain.training.MART", QUICK],
    ],
)
def test_nothing_stays_of_the_part_whose_place_a_name_takes(line):
    """A step of the default attack beside the relative one of pgd-quick, say."""
    attack = training.read_plan(line).training["objective"]["init_args"]["attack"]
    build(attack, "attack")
    assert attack["init_args"]["step_size"] is None


def test_nor_of_a_default_in_a_file(planned):
    objective = {
        "class_path": "robusttrain.training.Adversarial",
        "init_args": {"attack": "pgd-quick"},
    }
    attack = planned(training, {"training": {"objective": objective}}).training["objective"][
        "init_args"
    ]["attack"]
    build(attack, "attack")
    assert attack["init_args"]["step_size"] is None


def test_a_class_on_the_line_replaces_a_part_whole_as_a_preset_does():
    """Nothing of what a file says of the same part stays, and an objective may be named so, too."""
    small = {"class_path": "robusttrain.models.CifarResNet", "init_args": {"widths": [8, 16, 16]}}
    line = ["--model", small["class_path"], "--model.blocks=2"]
    plan = training.read_plan(line, said=[{"model": small}])
    assert (
        plan.model["init_args"]["widths"] == training.read_plan(line).model["init_args"]["widths"]
    )
    assert plan.model["init_args"]["blocks"] == 2
    objective = "robusttrain.training.MART"
    plan = training.read_plan(["--training", objective])
    assert plan.training["objective"]["class_path"] == objective
