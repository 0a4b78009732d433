"""Evaluations compared image by image: tests by hand, and what may not be compared."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_evaluations import Noisy, classifier
from torch import nn

import robusttrain
from robusttrain.attacks import OtherModel
from robusttrain.commands import compare as command
from robusttrain.config.attacks import attack_nodes, scenario
from robusttrain.core.errors import UserError
from robusttrain.evaluation.paired import agresti_min, compared
from robusttrain.evaluation.report import changes
from robusttrain.reporting.comparison import compare
from robusttrain.reporting.comparison_page import sentence
from robusttrain.reporting.runs import CLEAN, WORST, read_run

pytestmark = pytest.mark.filterwarnings("ignore")


def table(both, lost, won, neither):
    """Verdicts of two evaluations with these counts."""
    before = [1.0] * (both + lost) + [0.0] * (won + neither)
    after = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    return torch.tensor(before), torch.tensor(after)


@pytest.mark.parametrize(
    ("lost", "won"), [(1, 28), (5, 5), (0, 6), (12, 3), (0, 0), (1, 0), (40, 61)]
)
def test_mcnemar_by_hand(lost, won):
    """Twice the smaller tail of a fair coin, at most 1."""
    found = compared(*table(50, lost, won, 20), "pgd", random=False)
    disagree = lost + won
    tail = sum(math.comb(disagree, k) for k in range(min(lost, won) + 1)) / 2**disagree
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert (found.lost, found.won) == (lost, won)
    count = 70 + disagree
    assert found.mean == pytest.approx((won - lost) / count)
    assert found.low < found.mean + 0.02
    assert found.low <= (won - lost) / (count + 2) <= found.high
    assert found.before.accuracy == pytest.approx((50 + lost) / count)
    assert "McNemar" in found.how


def test_agresti_min_by_hand():
    """Half an image in each of four cells: 10.5 lost, 20.5 won, of 102."""
    low, high = agresti_min(10, 20, 100)
    mean = 10 / 102
    error = math.sqrt((10.5 + 20.5) / 102 - mean**2) / math.sqrt(102)
    assert (low, high) == pytest.approx((mean - 1.959964 * error, mean + 1.959964 * error))
    assert agresti_min(0, 1, 1)[1] <= 1


def test_the_interval_covers_the_truth():
    chances = torch.tensor([0.5, 0.08, 0.15, 0.27])
    drawn = torch.multinomial(
        chances, 400 * 120, replacement=True, generator=torch.Generator().manual_seed(0)
    ).view(400, 120)
    covered = 0
    for row in drawn:
        low, high = agresti_min(int((row == 1).sum()), int((row == 2).sum()), 120)
        covered += low <= 0.07 <= high
    assert 0.92 < covered / 400 < 0.985


def test_random_models_by_the_mean_of_differences():
    before = torch.tensor([1.0, 0.5, 0.75, 0.0, 1.0]).repeat(8)
    after = torch.tensor([0.5, 0.5, 0.25, 0.25, 0.75]).repeat(8)
    found = compared(before, after, "pgd", random=True)
    change = after - before
    error = change.std().item() / math.sqrt(40)
    assert found.mean == pytest.approx(change.mean().item())
    assert found.low <= found.mean - 1.959964 * error + 1e-6  # of float32
    assert found.high >= found.mean + 1.959964 * error - 1e-6
    assert found.high - found.low < 1.15 * 2 * 1.959964 * error
    assert found.p == pytest.approx(math.erfc(abs(found.mean) / error / math.sqrt(2)))
    assert (found.lost, found.won) == (24, 8)
    assert compared(before, before, "pgd", random=True).p == 1
    single = compared(before[:1], after[:1], "pgd", random=True)
    assert math.isnan(single.low)
    assert single.points == "-50.0 points"
    assert single.chance == "-"


def test_rows_are_those_of_both_results(folder, evaluated):
    first, other = read_run(folder), read_run(evaluated(model=classifier(15)))
    rows = compare(first, other)
    assert [each.row for each in rows] == [CLEAN, "pgd-quick", "fgsm", WORST]
    for run, which in ((first, "before"), (other, "after")):
        figures = [run.results.clean, *(row.robust for row in run.results.attacks.values())]
        for row, figure in zip(rows, [*figures, run.results.worst_case], strict=True):
            assert str(getattr(row, which)) == str(figure)
    mirrored = compare(other, first)
    assert [each.mean for each in mirrored] == [-each.mean for each in rows]
    assert [each.p for each in mirrored] == [each.p for each in rows]


def test_table_page_and_sentence(folder, evaluated, tmp_path, capsys):
    other = evaluated(model=classifier(3))
    random = evaluated(model=Noisy(classifier()))
    file = tmp_path / "page.html"
    command.run([str(folder), str(other), str(random), "--output", str(file)])
    said = " ".join(capsys.readouterr().err.split())
    page = file.read_text()
    rows = compare(read_run(folder), read_run(other))
    for row in rows:
        assert row.points in page
        assert row.points in said
    assert page.count("<section>") == 3
    assert "McNemar" in page
    assert re.search(r"60 images of \w+; changes of at most 0\.05 \(12\.8/255\) per pixel", page)
    assert "as a model is random" in page
    assert "<script" not in page
    capsys.readouterr()
    again = changed(folder, tmp_path / "again", lambda content: None)
    command.run([str(folder), str(again)])
    assert "differ by +0.0 points" in capsys.readouterr().err
    same = (again / "comparison.html").read_text()
    assert "Both have the same weights" in same


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epsilon": 0.1}, r"threat: there .* 0\.05 .*, here .* 0\.1 "),
        ({"images": 50}, "images: there 60, here 50"),
        ({"seed": 1}, r"images: 60 each, of which \d+ are the same"),
        ({"attacks": ["fgsm"]}, "attacks: there pgd-quick, fgsm, here fgsm"),
        ({"overrides": [("steps", "3")]}, r"attacks\.pgd-quick\.steps: there 10, here 3"),
        ({"survivors": True}, "survivors: there False, here True"),
        ({"save_verdicts": False}, "has no verdicts of single images"),
    ],
)
def test_what_differs_is_named(folder, evaluated, changes, told):
    other = evaluated(**changes)
    with pytest.raises(UserError, match=told) as caught:
        command.run([str(folder), str(other)])
    assert str(other) in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(folder, target, change):
    """A copy of an evaluation whose results.json says something else."""
    shutil.copytree(folder, target)
    content = json.loads((target / "results.json").read_text())
    change(content)
    (target / "results.json").write_text(json.dumps(content))
    return target


def test_figures_that_somebody_changed_are_told_as_in_the_report(folder, evaluated, tmp_path):
    def better(content):
        content["worst_case"]["robust_accuracy"] += 0.05

    edited = changed(folder, tmp_path / "edited", better)
    with pytest.raises(UserError, match="the figures are not to be trusted: evaluate again"):
        command.run([str(folder), str(edited)])
    (edited / "verdicts.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="edited cannot be compared: .*verdicts.safetensors"):
        command.run([str(folder), str(edited)])


def test_other_pictures_of_the_same_classes_are_no_comparison():
    """Numbers and labels are the same, the pictures are not."""
    model, found = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), []
    labels = torch.arange(8) % 2
    for seed in range(2):
        x = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
        results = robusttrain.evaluate(
            model, x, labels, attacks="fgsm", audit=False, progress=False, precision="float32"
        )
        found.append(results.json["data_hash"])
    assert found[0] != found[1]


def test_hashes_of_pictures_are_compared(folder, tmp_path, capsys):
    other = changed(folder, tmp_path / "a", lambda content: content.update(data_hash="0" * 64))
    with pytest.raises(UserError, match="same numbers and labels of other pictures"):
        command.run([str(folder), str(other)])

    def lazily(content):
        content["data_hash"] = "0" * 64
        content["plan"]["data"].setdefault("init_args", {})["memory_limit_gib"] = 0.0

    with pytest.raises(UserError, match=r"is not known, as data\.memory_limit_gib differs"):
        command.run([str(folder), str(changed(folder, tmp_path / "c", lazily))])
    older = changed(folder, tmp_path / "b", lambda content: content.pop("data_hash"))
    command.run([str(folder), str(older)])
    assert "that both had the same pictures is not known" in capsys.readouterr().err


def test_one_number_stands_for_other_images_of_another_split(folder, tmp_path):
    """The line counted how many "are the same", and guessed at another seed."""

    def held_out(content):
        content["plan"]["split"] = "validation"

    other = changed(folder, tmp_path / "a", held_out)
    with pytest.raises(UserError, match="split: there test, here validation: evaluate") as caught:
        command.run([str(folder), str(other)])
    assert "images:" not in str(caught.value)


@pytest.fixture
def transferred(tmp_path):
    """Evaluates under an attack whose source, another model, has weights of its own; the folder."""

    def run(seed):
        torch.manual_seed(seed)
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        attack = replace(scenario(attack_nodes(["fgsm"])["fgsm"], "fgsm"), source=OtherModel(other))
        images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        robusttrain.evaluate(
            *(classifier(), images, torch.arange(8)),
            attacks={"transferred": attack},
            output=tmp_path / str(seed),
            **{"audit": False, "progress": False, "precision": "float32"},
        )
        return tmp_path / str(seed)

    return run


def test_other_weights_under_one_name_are_another_attack(transferred, tmp_path, capsys):
    """As where a checkpoint that a source names was trained again in between."""
    folders = [transferred(seed) for seed in range(2)]
    found = [json.loads((each / "results.json").read_text()) for each in folders]
    assert found[0]["plan"]["attacks"] == found[1]["plan"]["attacks"], "the case shows nothing"
    with pytest.raises(UserError, match="attacks.transferred: its source had other weights there"):
        command.run([*map(str, folders)])
    assert any(line.startswith("sources.transferred: was ") for line in changes(*found))
    older = changed(folders[1], tmp_path / "older", lambda content: content.pop("sources"))
    command.run([str(folders[0]), str(older)])
    said = " ".join(capsys.readouterr().err.split())
    assert "that the sources of transferred had the same weights is not known" in said
    content = json.loads((older / "results.json").read_text())
    assert not any("sources" in line for line in changes(content, found[1]))


def test_models_that_the_attacker_trains_may_differ_but_not_their_epochs(transferred, tmp_path):
    """They are trained against each target; how long is a setting of the attack."""

    def trained(content, epochs):
        source = {"class_path": "robusttrain.attacks.OwnSurrogate"}
        source["init_args"] = {"path": "surrogate:randomization"}
        content["plan"]["attacks"]["transferred"]["source"] = source
        content["plan"]["surrogate_epochs"] = epochs

    folders = [
        changed(transferred(seed), tmp_path / f"{seed}-{epochs}", partial(trained, epochs=epochs))
        for seed, epochs in ((0, 2), (1, 2), (2, 3))
    ]
    command.run([*map(str, folders[:2])])
    with pytest.raises(UserError, match="surrogate_epochs: there 2, here 3"):
        command.run([str(folders[0]), str(folders[2])])


def test_an_attack_that_was_edited_is_told(folder, tmp_path, capsys):
    first, other, same = (
        changed(folder, tmp_path / name, partial(dict.update, code={"fgsm": code}))
        for name, code in (("first", "a"), ("other", "b"), ("same", "a"))
    )
    command.run([str(first), str(other)])
    told = " ".join(capsys.readouterr().err.split())
    assert "attacks.fgsm: its code was edited between the two" in told
    command.run([str(first), str(same)])
    assert "its code was edited" not in " ".join(capsys.readouterr().err.split())


def test_what_a_comparison_rests_on_is_said(folder, tmp_path, capsys):
    def doubtful(content):
        finding = {"check": "zero gradients", "severity": "masked", "measured": "none"}
        content |= {"verdict": "masked: zero gradients", "audit": [finding], "audit_checks": 9}
        content["precision"]["attacks"]["fgsm"] = "bfloat16"
        content["versions"]["robusttrain"] = "0.1.0"

    other = changed(folder, tmp_path / "a", doubtful)
    command.run([str(folder), str(other)])
    said = " ".join(capsys.readouterr().err.split())
    page = (other / "comparison.html").read_text()
    for text in (
        "Do not rely on this figure",
        "precision.attacks.fgsm: there float32, here bfloat16",
        "versions.robusttrain: there",
    ):
        assert text in said
        assert text in page


def test_a_model_that_is_hardly_ever_right_is_told_before_the_sentence(evaluated, capsys):
    wrong = nn.Sequential(classifier(), nn.Linear(10, 10, bias=False)).eval()
    wrong[1].weight.data.copy_(torch.eye(10).roll(1, dims=0))
    first, other = (evaluated(model=model) for model in (classifier(), wrong))
    command.run([str(first), str(other)])
    said = " ".join(capsys.readouterr().err.split())
    assert f"{other}: Clean accuracy is " in said
    assert "another order of the classes explains it" in said
    assert f"{first}: Clean" not in said
    assert "another order of the classes explains it" in (other / "comparison.html").read_text()


def test_other_numbers_of_draws_are_told(folder, evaluated, capsys):
    """They choose the worst attack: one model is no more robust for fewer of them."""
    model = Noisy(classifier())
    few, many, again = (evaluated(model=model, draws=draws) for draws in (2, 5, 5))
    command.run([str(few), str(many)])
    said = " ".join(capsys.readouterr().err.split())
    assert "draws: there 2, here 5: fewer choose the worst attack" in said
    assert "draws: there 2, here 5" in (many / "comparison.html").read_text()
    command.run([str(many), str(again)])
    command.run([str(folder), str(few)])  # a model that repeats itself has one draw in any case
    assert "draws: there" not in " ".join(capsys.readouterr().err.split())


def test_where_no_radius_bounds_the_change_its_size_is_told(folder, evaluated, capsys):
    """Nearly all images fall then, of whatever model: 100 % says that a search did not end."""
    free = {"attacks": ["fmn-l2"], "overrides": [("steps", "20")], "epsilon": None}
    first, other = (evaluated(model=classifier(epochs), **free) for epochs in (40, 15))
    command.run([str(first), str(other)])
    said = " ".join(capsys.readouterr().err.split())
    sizes = [
        json.loads((each / "results.json").read_text())["attacks"]["fmn-l2"]["median_perturbation"]
        for each in (first, other)
    ]
    assert sizes[0] != sizes[1], "the case shows nothing"
    told = f"in the median: fmn-l2: there {sizes[0]:.4g}, here {sizes[1]:.4g}"
    assert told in said
    assert told in (other / "comparison.html").read_text()
    command.run([str(folder), str(evaluated(model=classifier(15)))])
    assert "no radius bounds" not in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("key", ["data", "images"])
def test_what_the_page_tells_has_to_be_there(folder, tmp_path, key):
    other = changed(folder, tmp_path / "a", lambda content: content.pop(key))
    for pair in ((folder, other), (other, folder)):
        with pytest.raises(UserError, match="damaged"):
            command.run([*map(str, pair)])


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "weak", "audit": [None]},
        {"verdict": "weak", "audit": True},
        {"verdict": "sound", "audit_checks": []},
        {"sources": 5},
        {"code": [1]},
    ],
)
def test_what_is_told_before_the_sentence_has_to_be_whole(folder, tmp_path, damage):
    other = changed(folder, tmp_path / "a", lambda content: content.update(damage))
    for pair in ((folder, other), (other, folder)):
        with pytest.raises(UserError, match=rf"{other}/results\.json: is damaged"):
            command.run([*map(str, pair)])


def test_a_size_that_is_none_is_told(folder, tmp_path):
    def far(content):
        content["attacks"]["fgsm"]["median_perturbation"] = "far"

    other = changed(folder, tmp_path / "a", far)
    with pytest.raises(UserError, match=rf"{other}/results\.json: is damaged"):
        command.run([str(folder), str(other)])


def test_batches_make_no_difference(folder, evaluated):
    assert [row.mean for row in compare(read_run(folder), read_run(evaluated(batch_size=7)))] == [
        0.0
    ] * 4


def test_where_images_are_handed_on_attacks_are_not_compared(evaluated):
    runs = [read_run(evaluated(survivors=True, model=model)) for model in (None, classifier(15))]
    assert [row.row for row in compare(*runs)] == [CLEAN, WORST]


def test_bad_lines_are_told(folder):
    for arguments, told in (
        ([str(folder)], "two folders or more"),
        ([str(folder), "--epsilon"], "takes folders and --output"),
        ([str(folder), str(folder / "none")], "cannot be read"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            command.run(arguments)


def test_figures_are_not_written_over(folder, evaluated, tmp_path):
    """A page in the place of results.json would leave nothing of the evaluation."""
    other = evaluated(model=classifier(3))
    for name in ("results.json", "verdicts.safetensors", "page"):
        before = (other / name).read_bytes() if (other / name).exists() else None
        with pytest.raises(UserError, match=f"--output .*{name}: is no HTML file by its name"):
            command.run([str(folder), str(other), "--output", str(other / name)])
        assert before == ((other / name).read_bytes() if (other / name).exists() else None)
    command.run([str(folder), str(other), "--output", str(tmp_path / "page.HTM")])
    assert (tmp_path / "page.HTM").exists()


def test_an_evaluation_is_not_compared_with_itself_by_another_name(folder):
    for name in (folder, folder / "results.json"):
        with pytest.raises(UserError, match="is named twice"):
            command.run([str(folder), str(name)])


def test_functions_are_not_said_to_have_the_same_weights(tmp_path):
    """What they compute with is in no state dict."""
    images = torch.rand(8, 3, 4, 4)
    folders = [tmp_path / "a", tmp_path / "b"]
    for sign, folder in zip((1, -1), folders, strict=True):

        def model(x, sign=sign):
            mean = sign * x.mean((1, 2, 3))
            return torch.stack([mean, -mean], 1)

        settings = {"attacks": "fgsm", "audit": False, "progress": False, "output": folder}
        robusttrain.evaluate(model, images, torch.zeros(8, dtype=torch.long), **settings)
    command.run([*map(str, folders), "--output", str(tmp_path / "c.html")])
    assert "the same weights" not in (tmp_path / "c.html").read_text()


def test_a_small_p_beside_an_interval_that_holds_zero_is_no_verdict(folder):
    """A random model that is a little worse on each image: sure of its sign, not of its size."""
    run = read_run(folder)
    after = torch.tensor([0.99, 0.98] * 30, dtype=torch.float64)
    row = compared(torch.ones(60), after, WORST, random=True)
    assert row.p < 0.05, "the case shows nothing"
    assert row.low <= 0 <= row.high, "the case shows nothing"
    said = sentence(run, run, [row])
    assert "but the interval holds 0" in said
    assert "more often" not in said


def test_other_seeds_are_told(folder, evaluated, tmp_path, capsys):
    """Both drew the same images here, all there are: nothing else said that the seeds differ."""
    whole = {"images": 297, "attacks": ["fgsm"]}
    first, other = (evaluated(seed=seed, **whole) for seed in (0, 1))
    command.run([str(first), str(other)])
    said = " ".join(capsys.readouterr().err.split())
    told = "seed: there 0, here 1: random starts and draws are others"
    assert told in said
    assert told in (other / "comparison.html").read_text()
    trained = [
        changed(folder, tmp_path / f"{at}", partial(dict.update, training_seed=seed))
        for at, seed in enumerate((3, 4, 4))
    ]
    command.run([str(trained[0]), str(trained[1])])
    said = " ".join(capsys.readouterr().err.split())
    assert "the models were trained with other seeds (there 3, here 4)" in said
    assert "seed: there" not in said
    command.run([str(trained[1]), str(trained[2])])
    command.run([str(folder), str(trained[2])])  # of the first one nobody knows
    said = " ".join(capsys.readouterr().err.split())
    assert "other seeds" not in said
    assert "seed: there" not in said
