"""The Python door: any model, any images, the same figures as the engine's."""

import json
import random
import time
import warnings
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robusttrain
from robusttrain.attacks import (
    APGD,
    L2,
    Attack,
    Cost,
    IdentityBackward,
    Linf,
    ProjectedGradient,
    Target,
)
from robusttrain.config.evaluation import read_plan
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.telling import Telling
from robusttrain.data import Digits
from robusttrain.defenses import AdversarialTransform, BitDepth
from robusttrain.evaluation import Engine, Scenario
from robusttrain.models import MLP
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running import given as given_over
from robusttrain.running.evaluating import evaluate

pytestmark = pytest.mark.filterwarnings("ignore")
PGD = ProjectedGradient(5, 0.01, threat=Linf(0.05))
QUIET = {"progress": False, "audit": False, "precision": "float32"}


@pytest.fixture
def given():
    """A linear model in training mode, 24 images, and labels that it mostly gets right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)).train()
    images = torch.rand(24, 3, 8, 8)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    return model, images, labels


def test_figures_are_the_engines(given):
    model, images, labels = given
    results = robusttrain.evaluate(model, images, labels, attacks={"mine": PGD}, **QUIET)
    engine = Engine(model, {"mine": Scenario(PGD, Target())})
    records, _ = engine.run(images, labels, torch.arange(24))
    for name in ("clean", "mine"):
        assert torch.equal(results.records.of(name).score, records.of(name).score)
    assert results.clean.accuracy == pytest.approx(23 / 24)
    assert results.worst_case.accuracy == results.attacks["mine"].robust.accuracy < 0.5
    assert results.attacks["mine"].preset["init_args"]["step_size"] == 0.01
    assert str(results).splitlines()[0] == "24 images, linf, epsilon 0.05"
    assert "worst case" in str(results)
    assert "mine" in results._repr_html_()
    assert "linf, epsilon 0.05" in results._repr_html_()


def test_an_accuracy_of_few_images_says_so(given):
    """Of those that the attack before left; alone it would read like one of all."""
    model, images, labels = given
    weak = ProjectedGradient(1, 0.004, random_start=False, threat=Linf(0.05))
    attacks = {"first": weak, "second": PGD}
    whole = robusttrain.evaluate(model, images, labels, attacks=attacks, **QUIET)
    assert "until then" not in str(whole)
    found = robusttrain.evaluate(model, images, labels, attacks=attacks, survivors=True, **QUIET)
    left = found.json["attacks"]["second"]["images"]
    assert 0 < left < 23
    line = next(line for line in str(found).splitlines() if line.startswith("second"))
    assert line.endswith(f"of the {left} images that stood until then")
    assert f"of the {left} images" in found._repr_html_()


def test_bools_are_black_and_white(given):
    model, images, labels = given
    light = images > 0.5
    found, plain = (
        robusttrain.evaluate(model, each, labels, attacks={"mine": PGD}, **QUIET)
        for each in (light, light.float())
    )
    assert torch.equal(found.records.worst, plain.records.worst)
    assert found.clean == plain.clean


def test_a_generator_called_random_declares_nothing(given):
    model, images, labels = given
    model.random = random.Random(0)
    assert not DefendedClassifier.of(model).random
    results = robusttrain.evaluate(model, images, labels, attacks={"mine": PGD}, **QUIET)
    assert results.json["random"] is False


def test_two_attacks_of_one_name_are_refused(given, tmp_path):
    (tmp_path / "pgd.yaml").write_text("like: pgd\nattack:\n  init_args:\n    steps: 1\n")
    names = ["pgd", str(tmp_path / "pgd.yaml")]
    with pytest.raises(UserError, match="pgd is called pgd as well"):
        robusttrain.evaluate(*given, attacks=names, **QUIET)


@pytest.mark.parametrize("name", ["clean", "../mine", "a\\b", "epsilon=0.1", ".hidden", ""])
def test_names_that_stand_for_something_else_are_refused(given, name):
    with pytest.raises(OptionError, match="no attack can be called that"):
        robusttrain.evaluate(*given, attacks={name: PGD}, **QUIET)


@pytest.mark.parametrize("name", ["verdicts", "examples", "finished", "bare_classifier-verdicts"])
def test_names_of_files_of_the_results_are_refused(given, name):
    with pytest.raises(OptionError, match=f"files of the results are called {name}"):
        robusttrain.evaluate(*given, attacks={name: PGD}, **QUIET)


def test_images_that_this_run_has_not_written_are_named(given, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("robusttrain.commands.calls.ALOUD", Telling(lines.append))
    loud = {**QUIET, "progress": True, "output": tmp_path}
    robusttrain.evaluate(*given, attacks={"mine": PGD}, save_images=True, **loud)
    assert not any("not written" in line for line in lines)
    robusttrain.evaluate(*given, attacks={"other": PGD}, save_images=True, **loud)
    assert f"{tmp_path}: not written by this run: mine.safetensors" in lines


def test_a_plan_with_a_radius_that_no_attack_has_is_refused():
    plan = read_plan(["--checkpoint", "digits-standard", "--attack", "fgsm"])
    with pytest.raises(OptionError, match=r"no attack of the plan has this radius \(but 0.031"):
        evaluate(replace(plan, epsilon=0.1, images=4))


def test_names_that_differ_in_a_space_keep_journals_of_their_own(given, tmp_path):
    still = ProjectedGradient(1, 1e-9, random_start=False, threat=Linf(0.05))
    settings = {"attacks": {"weak 1": still, "weak-1": PGD}, "output": tmp_path, **QUIET}
    found = robusttrain.evaluate(*given, **settings)
    alone = robusttrain.evaluate(*given, attacks={"weak-1": PGD}, **QUIET)
    assert found.attacks["weak 1"].robust == found.clean
    assert found.attacks["weak-1"].robust == alone.worst_case != found.clean


def test_the_model_is_left_as_it_was(given):
    model, images, labels = given
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, *others = model.parameters()
    first.grad = torch.full_like(first, 3.0)  # between a backward pass and an optimizer's step
    robusttrain.evaluate(model, images, labels, attacks="pgd-quick", count=4, **QUIET)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (first.grad == 3).all()
    assert all(parameter.grad is None for parameter in others)


FORMS = ["data set", "loader", "mappings", "bytes", "float64", "function", "numpy", "list"]


@pytest.mark.parametrize("kind", FORMS)
def test_images_and_models_come_in_many_forms(kind, given):
    model, images, labels = given
    images = (images * 255).round() / 255
    expected = robusttrain.evaluate(model, images, labels, attacks={"mine": PGD}, **QUIET)
    data = TensorDataset(images, labels)
    forms = {
        "data set": (model, data),
        "loader": (model, DataLoader(data, batch_size=7)),
        "mappings": (model, [{"image": x, "label": int(y)} for x, y in data]),
        "bytes": (model, (images * 255).round().to(torch.uint8), labels.int()),
        "float64": (model, images.double(), labels),
        "function": (lambda x: model(x), images, labels),
        "numpy": (model, images.numpy(), labels.numpy()),
        "list": (model, list(images), labels.tolist()),
    }
    results = robusttrain.evaluate(*forms[kind], attacks={"mine": PGD}, **QUIET)
    assert results.clean == expected.clean
    assert results.attacks["mine"].robust == expected.attacks["mine"].robust


def test_a_suite_says_what_it_leaves_out_and_a_threat_holds_for_all(given):
    model, images, labels = given
    results = robusttrain.evaluate(
        model, images, labels, suite="quick", threat=L2(0.5), count=8, **QUIET
    )
    assert results.json["threat"] == {"norm": "l2", "epsilon": 0.5}
    assert results.json["left_out"]["eot"] == "the target is not random"
    # Steepest ascent is that of the norm.
    rule = results.attacks["pgd-quick"].preset["init_args"]["rule"]["class_path"]
    assert rule == "robusttrain.attacks.Normalized"
    assert results.attacks["pgd-quick"].largest_perturbation <= 0.5 + 1e-5


def test_evaluations_of_several_threads_go_one_after_another(given, monkeypatch):
    model, images, labels = given
    inside, most, found = [], [], []
    carried_out = given_over._run

    def watched(*arguments):
        inside.append(0)
        most.append(len(inside))
        time.sleep(0.1)  # for the others to catch up, if nobody stops them
        results = carried_out(*arguments)
        inside.pop()
        return results

    def run():
        found.append(robusttrain.evaluate(model, images, labels, attacks={"mine": PGD}, **QUIET))

    monkeypatch.setattr(given_over, "_run", watched)
    threads = [Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1, 1, 1]
    assert len({each.worst_case for each in found}) == 1
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


def test_what_needs_training_images_is_left_out_of_suites_and_refused_by_name(given, tmp_path):
    (tmp_path / "two.yaml").write_text("attacks: [pgd-quick, transfer-standard]")
    results = robusttrain.evaluate(*given, suite=str(tmp_path / "two.yaml"), count=4, **QUIET)
    assert "no images" in results.json["left_out"]["transfer-standard"]
    with pytest.raises(UserError, match="needs training images: take evaluate.py"):
        robusttrain.evaluate(*given, attacks="transfer-standard", **QUIET)


def test_a_defended_model_is_random_and_scored_so(given, images):
    torch.manual_seed(0)
    model, images, labels = given
    g = AdversarialTransform(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), radius=0.1, steps=2)
    attacks = {"bpda": Scenario(PGD, IdentityBackward())}
    results = robusttrain.evaluate(
        model, images, labels, attacks=attacks, defense=g, count=6, draws=3, **QUIET
    )
    assert results.json["draws"] == 3
    assert results.records.of("bpda").score.shape == (6, 3)
    assert results.attacks["bpda"].preset["source"]["class_path"].endswith("IdentityBackward")
    with pytest.raises(UserError, match="defense: the model has one already"):
        robusttrain.evaluate(
            DefendedClassifier(g, model), images, labels, attacks=attacks, defense=g
        )


def test_one_of_our_data_sets(given):
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    results = robusttrain.evaluate(model, Digits(), attacks="pgd-quick", count=10, **QUIET)
    assert results.json["images"] == 10


def test_a_limit_is_not_the_data_sets_own(given):
    data = Digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    robusttrain.evaluate(model, data, attacks="pgd-quick", count=5, **QUIET)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == 297


def test_a_radius_that_is_no_bound_is_said(given, monkeypatch):
    lines = []
    monkeypatch.setattr("robusttrain.commands.calls.ALOUD", Telling(lines.append))
    loud = {**QUIET, "progress": True}
    robusttrain.evaluate(*given, attacks="pgd-quick", threat=Linf(8.0), count=4, **loud)
    assert any("threat 8 is no bound" in line for line in lines), lines


def test_doubts_are_heard_without_progress(given):
    """A figure that says nothing must not come without a word."""
    model, images, labels = given
    still = {"none": replace(PGD, steps=0)}
    for asked, said in (
        ({"attacks": still}, "none: takes no step"),
        ({"attacks": "pgd-quick", "threat": Linf(8.0)}, "threat 8 is no bound"),
        ({"attacks": {"mine": PGD}}, None),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            robusttrain.evaluate(model, images, labels, count=8, **asked, **QUIET)
        told = [str(each.message) for each in caught if each.category is UserWarning]
        assert (said is None) or any(line.startswith(said) for line in told), told
        assert said is not None or not told
    with pytest.warns(UserWarning, match=r"clean accuracy is 0\.0 %, no better than chance"):
        robusttrain.evaluate(model, images, (labels + 1) % 5, attacks={"mine": PGD}, **QUIET)


def sorted_by_class(given):
    model, images, _ = given
    labels = model(images).argmax(1)
    order = labels.argsort(stable=True)
    return model, images[order], labels[order]


@pytest.mark.parametrize("kind", ["tensors", "data set", "pairs"])
def test_some_of_many_images_are_chosen_by_the_seed(given, kind):
    """The first of a folder that is sorted by class are one class."""
    model, images, labels = sorted_by_class(given)
    images, labels = images.repeat(4, 1, 1, 1), labels.repeat_interleave(4)
    images = images.reshape(4, 24, 3, 8, 8).transpose(0, 1).reshape(96, 3, 8, 8)
    pairs = TensorDataset(images, labels)
    of = {"tensors": (images, labels), "data set": (pairs,), "pairs": ([*pairs],)}[kind]

    def chosen(count, seed=0):
        found = robusttrain.evaluate(model, *of, attacks="fgsm", count=count, seed=seed, **QUIET)
        return found.records

    few, more = chosen(12), chosen(24)
    assert len(few.label.unique()) > 2
    assert few.label.tolist() != chosen(12, seed=1).label.tolist()
    if kind == "tensors":  # which keep their places, and a larger choice holds the smaller
        assert few.label.tolist() == labels[few.index].tolist()
        assert {*few.index.tolist()} < {*more.index.tolist()}


def test_images_of_few_classes_are_told_of(given):
    model, images, labels = (given[0], *(each.flip(0) for each in sorted_by_class(given)[1:]))
    most = labels.bincount().argmax()
    images, labels = images[labels <= most], labels[labels <= most]
    loader = DataLoader(TensorDataset(images, labels), batch_size=2)
    of_one = int((labels == most).sum())
    assert of_one > 4
    for asked in ((loader,), (images[:of_one], labels[:of_one])):
        with pytest.warns(UserWarning, match=rf"the {of_one} images are of 1 class of 5: "):
            robusttrain.evaluate(model, *asked, attacks="fgsm", count=of_one, **QUIET)


def test_a_folder_keeps_it_and_an_interrupted_call_goes_on_there(given, tmp_path, monkeypatch):
    model, images, labels = given
    asked = {"attacks": {"mine": PGD, "then": APGD(3, threat=Linf(0.05))}, "batch_size": 8, **QUIET}
    whole = robusttrain.evaluate(model, images, labels, **asked)

    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(APGD, "run", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            robusttrain.evaluate(model, images, labels, output=tmp_path / "out", **asked)
    with monkeypatch.context() as broken:  # what PGD did is there
        broken.setattr(ProjectedGradient, "run", interrupted)
        broken.setattr(
            "robusttrain.attacks.algorithms.projected_gradient.ProjectedGradient.run", interrupted
        )
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            robusttrain.evaluate(model, images, labels, output=tmp_path / "out", **asked)
    again = robusttrain.evaluate(model, images, labels, output=tmp_path / "out", **asked)
    assert again.worst_case == whole.worst_case
    kept = robusttrain.read_results(tmp_path / "out")
    assert kept.worst_case == whole.worst_case
    kept.save(tmp_path / "copy")
    assert torch.equal(
        robusttrain.read_results(tmp_path / "copy").records.of("mine").right,
        whole.records.of("mine").right,
    )
    assert json.loads((tmp_path / "copy" / "results.json").read_text()) == dict(kept.json)


def test_the_command_line_cannot_repeat_it(given, tmp_path, command):
    robusttrain.evaluate(*given, attacks="pgd-quick", count=4, output=tmp_path / "out", **QUIET)
    done = command("evaluate.py", "--again", tmp_path / "out")
    assert done.code == 2
    assert "was evaluated in Python" in done.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "handed over in Python" in page
    assert "--again" not in page


def test_nor_where_a_network_and_data_of_ours_were_handed_over(tmp_path, command):
    """Their classes alone would make an untrained network."""
    robusttrain.evaluate(
        MLP(10, 1, 16), Digits(), attacks="pgd-quick", count=4, output=tmp_path / "out", **QUIET
    )
    done = command("evaluate.py", "--again", tmp_path / "out")
    assert done.code == 2
    assert "was evaluated in Python" in done.err


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (lambda m, x, y: (m, x, None), "labels: give one for each image"),
        (lambda m, x, y: (m, x, y + 1), r"must lie in 0..4, since there are 5 classes; got 2..5"),
        (lambda m, x, y: (m, x[:, 0], y), "expected \\(N, C, H, W\\)"),
        (lambda m, x, y: (m, x * 255, y), "values must lie in \\[0, 1\\]"),
        (lambda m, x, y: (m, TensorDataset(x, y), y), "brings labels of its own"),
        (lambda m, x, y: (m, [], None), "there are none"),
        (lambda m, x, y: (m, [(x[0], 0), (x[0, :, 1:], 1)], None), "different shapes"),
        (lambda m, x, y: (m, [("a.png", 0)], None), "hold a str, not a tensor"),
        (
            lambda m, x, y: (m, x, ["cat"] * 24),
            "class numbers, got cat: give each class",
        ),
        (lambda m, x, y: (m, [(x[0], "cat")], None), "class numbers, got cat"),
        (lambda m, x, y: (m, x, y[:, None]), r"got \(24, 1\): give labels\[:, 0\]"),
        (lambda m, x, y: (m, x, torch.eye(5)[y]), r"\(24, 5\): give labels.argmax\(dim=1\)"),
        (lambda m, x, y: (m, [(x[0], torch.eye(5)[0])], None), r"got \(5,\): .* label.argmax\(\)"),
        (lambda m, x, y: (m, (255 * x).long(), y), "int64 leaves open whether 1 is white or 255"),
        (lambda m, x, y: ("resnet", x, y), "expected a torch.nn.Module or a function"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(change, fix, given):
    with pytest.raises(UserError, match=fix):
        robusttrain.evaluate(*change(*given), attacks="pgd-quick", **QUIET)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"attacks": APGD()}, "attacks: give it a name"),
        ({"attacks": [APGD()]}, "a list holds presets' names"),
        ({"attacks": {"mine": len}}, "expected a preset's name, an Attack or a Scenario"),
        ({"attacks": {"mine": 3}}, "expected a preset's name, an Attack or a Scenario, got 3"),
        ({"attacks": "fgsm", "threat": 0.2}, "threat: expected Linf"),
        ({"attacks": "fgsm", "defense": nn.Identity()}, "expected a Defense, got Identity"),
        ({"attacks": "fgsm", "defense": abs}, "expected a Defense, got builtin_function"),
    ],
)
def test_what_is_of_another_kind_is_said_in_one_line(given, settings, fix):
    with pytest.raises(UserError, match=fix) as caught:
        robusttrain.evaluate(*given, **QUIET, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64])
def test_labels_of_types_that_torch_hardly_knows(given, kind):
    model, images, labels = given
    typed = [(image, label.to(kind)) for image, label in zip(images, labels, strict=True)]
    results = robusttrain.evaluate(model, typed, attacks="fgsm", **QUIET)
    assert results.clean.accuracy == pytest.approx(23 / 24)


def test_what_applies_is_asked_of_images_as_they_are(given):
    """A suite's conditions on a classifier of one size, where images are not square."""
    _, images, labels = given
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 5))
    results = robusttrain.evaluate(
        *(model, images[..., :6], labels), suite="quick", defense=BitDepth(), count=4, **QUIET
    )
    assert [*results.attacks] == ["wt", "wt-apgd", "bpda-i-quick"]


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_are_no_limit(given, count):
    with pytest.raises(OptionError, match=f"count = {count}"):
        robusttrain.evaluate(*given, attacks="pgd-quick", count=count, **QUIET)


def test_a_limit_hides_no_label_that_is_missing(given):
    model, images, labels = given
    with pytest.raises(UserError):
        robusttrain.evaluate(model, images, labels[:10], attacks="fgsm", count=5, **QUIET)


def test_models_with_numpy_or_quantized_layers_inside(given):
    """Neither knows bfloat16, and both can be asked."""
    model, images, labels = given
    for asked in (
        lambda x: model(x).detach().numpy(),
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
    ):
        results = robusttrain.evaluate(
            asked, images, labels, attacks="square-quick", count=4, audit=False, progress=False
        )
        assert results.clean.accuracy >= 0.5
        with pytest.raises(UserError, match="depend differentiably on the image"):
            robusttrain.evaluate(
                asked, images, labels, attacks="pgd-quick", count=4, audit=False, progress=False
            )


def test_a_threat_that_an_attack_does_not_take_names_the_attack(given):
    with pytest.raises(UserError, match="attacks.deepfool.threat"):
        robusttrain.evaluate(*given, attacks=["pgd-quick", "deepfool"], threat=Linf(0.03), **QUIET)


def test_an_attack_by_its_name(given):
    model, images, labels = given
    adversarial = robusttrain.attack("pgd", epsilon=8 / 255, steps=3)(model, images, labels)
    distance = (adversarial - images).abs().max()
    assert 0 < distance <= 8 / 255 + 1e-6
    assert robusttrain.attack("bpda-eot", gradient__draws=3).attack.gradient.draws == 3
    assert robusttrain.attack("pgd", epsilon="8/255").attack.threat.epsilon == 8 / 255
    for wrong in ("wide", float("nan"), -1):
        with pytest.raises(OptionError, match="^epsilon = "):
            robusttrain.attack("pgd", epsilon=wrong)
    with pytest.raises(UserError, match="did you mean"):
        robusttrain.attack("pgdd")
    with pytest.raises(UserError, match="steps"):
        robusttrain.attack("pgd", steps=-1)


def test_every_algorithm_has_defaults_that_work(given):
    import inspect

    from robusttrain import attacks

    model, images, labels = given
    algorithms = [
        cls
        for cls in vars(attacks).values()
        if inspect.isclass(cls) and issubclass(cls, attacks.Attack) and not inspect.isabstract(cls)
    ]
    assert len(algorithms) >= 12
    for cls in algorithms:
        attack = cls()
        small = attack.scaled(0) or attack
        if attack.asks_g:
            continue  # starts from a g, which this model has none of
        adversarial = small(model, images[:2], labels[:2])
        assert adversarial.shape == images[:2].shape, cls


def test_steps_are_as_long_as_madry_has_them_where_nobody_says():
    assert ProjectedGradient(steps=10, threat=Linf(0.1)).alpha == pytest.approx(0.025)
    with pytest.raises(OptionError, match="at most one of"):
        ProjectedGradient(step_size=0.1, relative_step_size=0.1)
    moved = ProjectedGradient(step_size=0.01, threat=Linf(0.1)).within(L2(1.0))
    assert moved.step_size == pytest.approx(0.1)
    assert type(moved.rule).__name__ == "Normalized"


def test_an_attack_alone_says_in_one_line_what_a_model_cannot_take(given):
    model, images, labels = given
    attack = robusttrain.attack("pgd", steps=1)
    with pytest.raises(UserError, match=r"^the model cannot take images of \("):
        attack(model, images.repeat(1, 2, 1, 1), labels)
    with pytest.raises(UserError, match="ZeroDivisionError: division by zero"):
        attack(lambda x: 1 / 0, images, labels)


@pytest.mark.parametrize("loaded", [False, True])
def test_more_images_than_there_are_are_refused(given, loaded):
    model, images, labels = given
    about = {"attacks": "fgsm", "audit": False, "progress": False, "count": 9999}
    pairs = (DataLoader(TensorDataset(images, labels), batch_size=7),)
    given = pairs if loaded else (images, labels)
    with pytest.raises(UserError, match=f"^count = 9999: there are {len(images)} images"):
        robusttrain.evaluate(model, *given, **about)


@pytest.mark.parametrize("attacks", [[], {}])
def test_nothing_is_called_robust_that_was_not_attacked(given, attacks):
    with pytest.raises(UserError, match="^attacks: there is none"):
        robusttrain.evaluate(*given, attacks=attacks, progress=False)


def test_the_audits_verdict_stands_below_the_figures(given):
    results = robusttrain.evaluate(*given, attacks="fgsm", progress=False)
    assert f"audit       {results.json['verdict']}" in str(results).splitlines()
    assert f"<td>audit</td><td>{results.json['verdict']}</td>" in results._repr_html_()
    assert "audit" not in str(robusttrain.evaluate(*given, attacks="fgsm", **QUIET))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda images: None, r"^Careless.run returned NoneType, not images \(2, 3, 8, 8\): "),
        (lambda images: images[:-1], r"^Careless.run returned \(1, 3, 8, 8\), not images"),
    ],
)
def test_an_own_attack_that_returns_no_images_is_told_so(given, returned, said):
    class Careless(Attack):
        threat = Linf(0.1)

        def cost(self):
            return Cost(0)

        def run(self, source, images, labels, rng):
            return returned(images)

    model, images, labels = given
    with pytest.raises(UserError, match=said):
        Careless()(model, images[:2], labels[:2])


def test_numbers_are_taken_as_people_have_them(given):
    numpy = pytest.importorskip("numpy")
    assert robusttrain.attack("pgd", steps=numpy.int64(5)).attack.steps == 5
    assert robusttrain.attack("pgd", step_size=torch.tensor(0.5)).attack.step_size == 0.5
    with pytest.raises(UserError, match="is no value of an attack's argument"):
        robusttrain.attack("pgd", steps=object())
    results = robusttrain.evaluate(*given, attacks="fgsm", curve=0.1, **QUIET)
    assert results.plan.curve == [0.1]
    with pytest.raises(OptionError, match="^curve = 'wide': must be numbers"):
        robusttrain.evaluate(*given, attacks="fgsm", curve="wide", **QUIET)


def test_uint8_of_zeros_and_ones_leaves_open_what_white_is(given):
    model, images, labels = given
    bits = images.round().to(torch.uint8)
    with pytest.raises(UserError, match="uint8 of 0 and 1 alone leaves open"):
        robusttrain.evaluate(model, bits, labels, attacks="fgsm", **QUIET)
    robusttrain.evaluate(model, 255 * bits, labels, attacks="fgsm", **QUIET)


def test_a_model_that_was_built_in_inference_mode_is_refused_for_that(given):
    _, images, labels = given
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    with pytest.raises(UserError, match="^the model was built in inference mode"):
        robusttrain.evaluate(model, images, labels, attacks="fgsm", **QUIET)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_model_without_values_is_refused_for_that(given, part):
    """Wholly on torch's device meta, or in a part whose weights were not loaded."""
    _, images, labels = given
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(3 * 64, 5))
    (model[part] if part else model).to("meta")
    told = "^the model has weights on the device meta, which holds no values: load them"
    with pytest.raises(UserError, match=told):
        robusttrain.evaluate(model, images, labels, attacks="fgsm", **QUIET)
    with pytest.raises(UserError, match=told):
        robusttrain.attack("fgsm")(model, images, labels)


def test_a_model_whose_weights_nobody_has_sized_is_refused_for_that(given):
    _, images, labels = given
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    told = r"^the model: its part classifier\.1 \(LazyLinear\) has no .*torch.zeros\(1, 3, 8, 8\)"
    with pytest.raises(UserError, match=told):
        robusttrain.evaluate(model, images, labels, attacks="fgsm", **QUIET)
    model(images[:1])
    robusttrain.evaluate(model, images, labels, attacks="fgsm", **QUIET)


def test_what_a_suite_cannot_have_in_a_threat_is_left_out(given, tmp_path):
    """GenAttack mutates within a cube. Who asks for it by name is told."""
    (tmp_path / "two.yaml").write_text("attacks: [pgd-quick, genattack]\n")
    two = str(tmp_path / "two.yaml")
    found = robusttrain.evaluate(*given, suite=two, threat=L2(0.5), **QUIET)
    assert list(found.attacks) == ["pgd-quick"]
    assert found.json["left_out"]["genattack"].startswith("the threat must be Linf")
    with pytest.raises(OptionError, match="genattack"):
        robusttrain.evaluate(*given, attacks="genattack", threat=L2(0.5), **QUIET)


def test_a_suite_sets_the_radius_where_nobody_else_does(given, tmp_path):
    (tmp_path / "far.yaml").write_text("epsilon: 0.2\nattacks: [pgd-quick]\n")
    far = {"suite": str(tmp_path / "far.yaml"), "count": 4, **QUIET}
    assert robusttrain.evaluate(*given, **far).json["threat"]["epsilon"] == 0.2
    said = robusttrain.evaluate(*given, threat=Linf(0.1), **far)
    assert said.json["threat"]["epsilon"] == 0.1


@pytest.mark.parametrize(
    "said",
    [
        {"seed": np.int64(1)},
        {"count": np.int64(6), "batch_size": np.int32(4)},
        {"draws": np.int32(2), "tries": np.int64(2)},
        {"threat": Linf(np.float32(0.05)), "audit": np.False_},
        {"seed": torch.tensor(1)},
    ],
)
def test_numbers_of_numpy_and_torch_are_numbers(said, given):
    """They ended in an OverflowError, or as no JSON."""
    plain = {
        key: value.item() if isinstance(value, np.generic | torch.Tensor) else value
        for key, value in said.items()
    }
    found = [
        robusttrain.evaluate(*given, attacks={"mine": PGD}, **{**QUIET, **each})
        for each in (said, plain)
    ]
    assert found[0].worst_case == found[1].worst_case
