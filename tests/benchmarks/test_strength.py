"""The benchmark of attacks' strength: who asks what is counted alike, and the best of all reaches
all of its area.
"""

import json
import math
import zipfile

import pytest
import torch
from torch import nn

from benchmarks import strength
from benchmarks.counted import BudgetSpentError, Counted, Tally
from benchmarks.strength_contender import Contender
from benchmarks.strength_kept import pack, unpack
from benchmarks.strength_measures import (
    accuracy,
    area,
    curves,
    first,
    firsts,
    optimality_of_distances,
    shares,
    table,
)
from robusttrain import Rng
from robusttrain.attacks import FMN, Linf, ProjectedGradient
from robusttrain.core.errors import UserError
from robusttrain.models.defended import DefendedClassifier

WIDE = Linf(1.0)


class Bright(nn.Module):
    """Class 1 where the mean is over a half."""

    def forward(self, images):
        light = images.mean((1, 2, 3)) - 0.5
        return torch.stack([-light, light], 1)


def tally(budget=100, radius=None, count=3):
    images = torch.full((count, 1, 2, 2), 0.4)
    images += torch.arange(count)[:, None, None, None] / 50
    return Tally(
        DefendedClassifier.of(Bright()), images, torch.zeros(count).long(), WIDE, budget, radius
    )


def test_forward_and_backward_passes_count_alike():
    counts = tally()
    model = Counted(counts)
    x = counts.images.clone().requires_grad_()
    model(x)
    assert counts.spent.tolist() == [1, 1, 1]
    model(x).sum().backward()
    assert counts.spent.tolist() == [3, 3, 3]
    logits = model(x)
    for number in range(2):  # as DeepFool does, class by class
        torch.autograd.grad(logits[:, number].sum(), x, retain_graph=True)
    assert counts.spent.tolist() == [6, 6, 6]
    with torch.no_grad():
        model(counts.images[1:] + 0.001)
        model(counts.images[[2, 0]])
    assert counts.spent.tolist() == [7, 7, 8]


def test_the_nearest_point_is_noted_with_its_query():
    counts = tally()
    model = Counted(counts)
    with torch.no_grad():
        for far in (0.05, 0.3, 0.2, 0.7):
            model(counts.images + far)
    for budget, expected in (
        (1, [math.inf, math.inf, math.inf]),
        (2, [0.3, 0.3, 0.3]),
        (3, [0.2, 0.2, 0.2]),
        (100, [0.2, 0.2, 0.2]),
    ):
        assert counts.distances(budget) == pytest.approx(expected)


def test_points_outside_of_the_box_do_not_count():
    counts = tally()
    Counted(counts)(counts.images + 0.9)
    assert counts.distances(1) == [math.inf] * 3


def test_it_stops_when_all_is_spent_or_all_fell():
    counts = tally(budget=2)
    model = Counted(counts)
    for _ in range(2):
        model(counts.images)
    with pytest.raises(BudgetSpentError):
        model(counts.images)
    counts = tally(radius=0.3)
    model = Counted(counts)
    model(counts.images + 0.3)
    with pytest.raises(BudgetSpentError):
        model(counts.images)


@pytest.mark.parametrize("attack", [ProjectedGradient(3, 0.05, threat=Linf(0.2)), FMN(3)])
def test_our_attacks_are_counted_too(attack):
    counts = tally()
    attack(Counted(counts), counts.images, counts.labels, Rng.for_images(0, torch.arange(3)))
    looked = 0 if isinstance(attack, ProjectedGradient) else 1
    assert counts.spent.tolist() == [6 + looked] * 3


def test_the_best_of_all_reaches_all_of_its_area():
    def contender(name, nearest):
        return Contender("ours", name, "linf", None, nearest=nearest)

    rows = {
        contender("one", True): {10: [0.2, math.inf], 100: [0.01, 0.05]},
        contender("two", True): {10: [math.inf, 0.03], 100: [0.04, 0.02]},
    }
    alone = {contender("best", True): {10: [0.2, 0.03], 100: [0.01, 0.02]}}
    both, best = (curves(given, [10, 100], 0.03) for given in (rows, alone))
    for measure in ("robust_accuracy", "median_distance"):
        assert list(best[measure]["optimality"].values()) == [1.0]
        shares = both[measure]["optimality"].values()
        assert 0 <= min(shares) < 1
        assert max(shares) <= 1
        assert both[measure]["best_of_all"] == best[measure]["best_of_all"]
    assert both["robust_accuracy"]["best_of_all"] == [0.5, 0.0]


def test_where_nobody_looks_for_the_nearest_point_there_is_no_distance():
    rows = {Contender("ours", "one", "linf", None): {10: [0.2, 0.01]}}
    found = curves(rows, [10], 0.03)
    assert found["robust_accuracy"]["best_of_all"] == [0.5]
    assert found["median_distance"]["best_of_all"] == []
    about = {"budgets": [10], "radius": 0.03, "images": 2}
    report = {"models": {"f_b": {"linf": {**about, **found}}}}
    lines = table(report)
    assert "robust accuracy" in lines
    assert "distance" not in lines
    assert firsts(report, "median_distance").count("\n") == 1
    assert firsts(report, "robust_accuracy").endswith("| f_b, Linf (0.03) | 2 | 10 | 50.0 / - |")


def test_measures_by_hand():
    assert accuracy([0.01, 0.03, 0.05, math.inf], 0.03) == 0.5
    assert area([0.5, 0.0], [10, 100]) == pytest.approx(0.75 * math.log(10))
    # e = 0.4: (0.4 - 0.2) / ((0.4 - 0.1) + (0.4 - 0.4))
    assert optimality_of_distances([0.2, 0.5], [0.1, 0.4]) == pytest.approx(2 / 3)
    row = first({"a (ours)": [0.101], "b (foolbox)": [0.1]}, 0, absolute=False)
    assert row["within_1_percent"]
    assert not first({"a (ours)": [0.102], "b (x)": [0.1]}, 0, absolute=False)["within_1_percent"]


def test_tables_of_optimality_begin_with_the_highest_mean():
    def norm(**rows):
        return {"robust_accuracy": {"optimality": rows}}

    models = {
        "f_b": {"linf": norm(low=0.5, high=0.75), "l2": norm(high=1.0)},
        "standard": {"linf": norm(low=0.25, high=0.5)},
    }
    assert shares({"models": models}, "robust_accuracy").splitlines() == [
        "| implementation | f_b, Linf | f_b, L2 | standard, Linf |",
        "|---|---|---|---|",
        "| high | 0.750 | 1.000 | 0.500 |",
        "| low | 0.500 |  | 0.250 |",
    ]


def test_a_target_in_another_memory_format_hands_out_a_dense_gradient():
    class ChannelsLast(Bright):
        def forward(self, images):
            return super().forward(images.contiguous(memory_format=torch.channels_last) * 2)

    images = torch.rand(2, 3, 4, 4)
    target = DefendedClassifier.of(ChannelsLast())
    model = Counted(Tally(target, images, torch.zeros(2).long(), WIDE, 10))
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(dim=0)[1], x)
    assert gradient.is_contiguous()


def test_a_report_comes_out_and_curves_are_measured_once(tmp_path, monkeypatch):
    command = ["--images", "3", "--budgets", "6", "12", "--models", "f_b", "randomized"]
    command += ["--norms", "linf", "--only", "ours", "--work", str(tmp_path / "work")]
    command += ["--output", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    threads = torch.get_num_threads()
    try:
        strength.main(command)
        monkeypatch.setattr(strength, "measure", None)  # everything is there
        strength.main(command)
    finally:
        torch.set_num_threads(threads)
    report = json.loads((tmp_path / "a.json").read_text())
    assert set(report["models"]) == {"digits f_b", "digits randomized"}
    for norms in report["models"].values():
        assert norms["linf"]["images"] == 3
        part = norms["linf"]["robust_accuracy"]
        assert all(len(row) == 2 for row in part["curves"].values())
        assert "pgd (ours)" in part["curves"]
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_runs_on_a_random_model_count_together(tmp_path, capsys):
    command = ["--images", "5", "--budgets", "12", "--models", "randomized", "--norms", "l2"]
    command += ["--only", "ours", "--attacks", "ddn", "--work", str(tmp_path / "work")]
    command += ["--runs", "3", "--output", str(tmp_path / "a.json")]
    threads = torch.get_num_threads()
    try:
        strength.main(command)
    finally:
        torch.set_num_threads(threads)
    files = sorted((tmp_path / "work" / "digits randomized").iterdir())
    assert [file.name for file in files] == [
        *("l2-ours-ddn-0-run-1.json", "l2-ours-ddn-0-run-2.json", "l2-ours-ddn-0.json")
    ]
    runs = [json.loads(file.read_text())["distances"]["12"] for file in files]
    assert len({str(run) for run in runs}) == 3  # each with a seed of its own
    together = sorted(math.inf if far is None else far for run in runs for far in run)
    part = json.loads((tmp_path / "a.json").read_text())["models"]["digits randomized"]["l2"]
    assert part["runs"] == 3
    assert part["median_distance"]["curves"] == {"ddn (ours)": [round(together[7], 4)]}
    assert "| digits randomized, L2 | 5, 3 runs | 12 |" in capsys.readouterr().out


def kept(work, library, name="fgsm", model="digits f_b"):
    file = work / model / f"l2-{library}-{name}-0.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": {"images": 1}, "distances": {"10": [library]}}))
    return file


def test_the_peers_curves_are_taken_from_an_earlier_run(tmp_path):
    """Ours are not, nor those of another version, nor over what was measured here."""
    then, now = tmp_path / "then", tmp_path / "now"
    versions = {"foolbox": "3", "adv-lib": None, "torchattacks": "1", "autoattack": "a3"}
    for library in ("ours", *versions):
        kept(then, library)
    pack(then, versions, tmp_path / "peers.zip")
    pack(then, versions, tmp_path / "again.zip")
    assert (tmp_path / "peers.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    measured = kept(now, "adv-lib")
    measured.write_text("{}")
    assert unpack(tmp_path / "peers.zip", now, {**versions, "torchattacks": "2"}) == 2
    assert measured.read_text() == "{}"
    assert {file.name for file in (now / "digits f_b").iterdir()} == {
        f"l2-{library}-fgsm-0.json" for library in ("foolbox", "adv-lib", "autoattack")
    }
    for library in ("foolbox", "autoattack"):
        file = kept(then, library)
        assert json.loads((now / "digits f_b" / file.name).read_text()) == json.loads(
            file.read_text()
        )


def test_an_earlier_run_that_is_none_is_one_line(tmp_path):
    (tmp_path / "peers.zip").write_text("nothing")
    with pytest.raises(UserError, match=r"^--earlier .*peers\.zip: cannot be read"):
        unpack(tmp_path / "peers.zip", tmp_path / "work", {})


def test_a_budget_at_which_ours_is_behind_is_bold():
    rows = {
        Contender("ours", "one", "linf", None): {10: [0.2, 0.01], 1000: [0.01, 0.02]},
        Contender("foolbox", "two", "linf", None): {10: [0.01, 0.02], 1000: [0.01, 0.2]},
    }
    found = {"budgets": [10, 1000], "radius": 0.03, "images": 2, **curves(rows, [10, 1000], 0.03)}
    row = firsts({"models": {"f_b": {"linf": found}}}, "robust_accuracy").splitlines()[-1]
    assert row == "| f_b, Linf (0.03) | 2 | 10, 1,000 | **50.0 / 0.0**, 0.0 / 50.0 |"


def test_curves_of_an_earlier_run_stay_in_the_folder(tmp_path):
    """A zip from elsewhere must not write above it."""
    content = {"versions": {"foolbox": "3"}, "curves": {"l2-foolbox-fgsm-0.json": {}}}
    with zipfile.ZipFile(tmp_path / "peers.zip", "w") as archive:
        archive.writestr("../l2.json", json.dumps(content))
    with pytest.raises(UserError, match="is in no model's folder"):
        unpack(tmp_path / "peers.zip", tmp_path / "work" / "inside", {"foolbox": "3"})
    assert not (tmp_path / "work").exists()


def test_a_report_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--tables .*nowhere\.json: cannot be read"):
        strength.main(["--tables", str(tmp_path / "nowhere.json")])
