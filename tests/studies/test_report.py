"""Tables and figures."""

import torch

from robusttrain.evaluation.paired import agresti_min
from robusttrain.reporting import decision_regions
from robusttrain.transfer import Regions
from studies.converged import SETTINGS, doubled, pace, trained, tried
from studies.recipes import beside
from studies.scales import SCALES
from studies.study import Study, percent


def test_accuracies():
    assert percent(0.5) == "50.0 %"
    assert percent(None) == "-"


def test_differences_are_taken_image_by_image():
    """One image of a hundred changes sides: a point up, with the spread of that one alone, whatever
    the others are.
    """
    theirs = torch.tensor([0.0, 1.0] * 50)
    ours = theirs.clone()
    ours[0] = 1.0
    low, high = agresti_min(0, 1, 100)
    assert beside(ours, theirs) == f"+1.0 ({100 * low:+.1f} to {100 * high:+.1f})"
    assert beside(theirs, theirs) == "+0.0 (-1.9 to +1.9)"  # nothing shows a spread


def test_what_doubling_added_over_seeds():
    assert doubled([0.02]) == "+2.0"
    assert doubled([0.02, 0.02]) == "+2.0 in each"
    # 12.706: the 97.5 % quantile of Student's t with one degree of freedom.
    assert doubled([0.01, 0.03]) == "+2.0 (-10.7 to +14.7)"


def test_a_recipes_time_is_beside_the_yardstick_of_its_own_seed():
    """The machine was half as fast while the second seed ran."""
    assert pace([400, 200], [100, 50]) == "0.25"
    assert pace([400, 100], [100, 50]) == "0.25 to 0.50"


def test_what_an_attacker_with_a_few_tries_leaves():
    """One draw that falls suffices; where nothing is random there is but one."""
    once, often = {"robust_accuracy": 0.4}, {"robust_accuracy": 0.1}
    assert tried({"worst_case": once, "randomness": None}) == 0.4
    known = {"unknown": {"worst_case": once}, "tries": {"tries": 4, "worst_case": often}}
    assert tried({"worst_case": once, "randomness": known}) == 0.1


def test_awp_begins_within_short_trainings(tmp_path):
    """The preset's warm-up of ten epochs would be refused where half a training has eight."""
    scale = SCALES["small"].but(data={"data": "cifar10"}, folder=tmp_path)
    work = trained(scale, SETTINGS["small"], "TRADES + AWP", 0, 8).work
    assert work.training["objective"]["init_args"]["warmup"] == 4
    assert work.trainer["max_epochs"] == 8


def test_a_figure_that_lays_itself_out_is_left_alone(tmp_path):
    figure = decision_regions(Regions({"m": torch.zeros(3, 3, dtype=torch.int64)}, 0.1), 0)
    engine = figure.get_layout_engine()
    study = Study("s", "S.", [f"--output={tmp_path}", f"--checkpoints={tmp_path}"])
    study.write(("a",), [(1,)], figure)
    text = (tmp_path / "study.md").read_text()
    assert "| a |\n|---|\n| 1 |" in text
    assert "f_b: trained here, preset f_b, 1 epochs." in text
    assert figure.get_layout_engine() is engine
