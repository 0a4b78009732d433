"""``--compile``: measured before it is used, refused where gradients differ, and only where it
pays.
"""

import time

import pytest
import torch

from robusttrain.evaluation import compiling
from robusttrain.evaluation.compiling import Choice, Trial, Work, choose_mode, kept
from robusttrain.models.compiling import asked_mode

CPU = torch.device("cpu")


def work(compiled=None, times=1.0, slow=0.0):
    """A gradient that takes ``slow`` seconds plain, none compiled."""
    plain = torch.arange(8.0).view(4, 2) + 1

    def gradient(count):
        if asked_mode() == "off":
            time.sleep(slow)
            return plain
        return compiled() if compiled else plain

    return Work(gradient, 4, times)


def fails():
    raise RuntimeError("unsupported: sort\nmore")


@pytest.mark.parametrize(
    ("compiled", "reason"),
    [
        (fails, "compiling fails (unsupported: sort)"),
        (lambda: torch.ones(4, 2) * torch.tensor([1.0, -1]), "at a cosine of -0."),
        (lambda: torch.full((4, 2), torch.nan), "at a cosine of nan"),
    ],
)
def test_gradients_that_are_wrong_or_none_are_refused(compiled, reason):
    choice = choose_mode("on", [work(), work(compiled)], CPU)
    assert (choice.mode, choice.active) == ("off", "off")
    assert reason in str(choice)
    assert "\n" not in str(choice)
    began = kept("default", [work(compiled)], CPU, "this run began so")
    assert (began.mode, began.active) == ("default", "off")
    assert reason in str(began)
    assert began.to_json()["fell_back"]


def test_short_work_is_not_even_tried():
    choice = choose_mode("auto", [work(fails, times=10)], CPU)
    assert choice.mode == "off"
    assert "compiling would take longer than it saves" in str(choice)
    assert choose_mode("on", [], CPU).mode == "off"


def test_what_pays_is_taken():
    long = work(times=1e6, slow=0.002)
    choice = choose_mode("auto", [long], CPU)
    assert choice.mode == "default"
    assert "times as long as plain here" in str(choice)
    slower = work(lambda: time.sleep(0.004) or torch.arange(8.0).view(4, 2), 1e6, slow=0.002)
    assert choose_mode("auto", [slower], CPU).mode == "off"
    assert choose_mode("on", [slower], CPU).mode == "default"


def test_a_gain_has_to_exceed_what_compiling_takes():
    assert compiling._Outcome(plain=100.0, compiled=50.0, compiling=49.0).pays
    assert not compiling._Outcome(plain=100.0, compiled=50.0, compiling=51.0).pays
    assert not compiling._Outcome(plain=1000.0, compiled=950.0, compiling=1.0).pays  # within noise
    assert Trial(1.0, 0.5, cosine=0.96).refused == ""


def test_cuda_graphs_are_measured_where_there_are_any():
    assert compiling.modes_on(CPU) == ("default",)
    assert compiling.modes_on(torch.device("cuda")) == ("default", "reduce-overhead")


def test_what_was_chosen_is_written_down():
    assert Choice("off", "so").to_json() == {"mode": "off", "because": "so"}
    assert compiling.mode_in({"compile": {"mode": "reduce-overhead"}}) == "reduce-overhead"
    assert compiling.mode_in({}) == "off"
    assert compiling.mode_in({"compile": {"mode": "evil"}}) == "off"
