"""Progress in a file: a line now and then, with what is left."""

import warnings

import pytest

from robusttrain.core.console import PACKAGE, Steps, bar, warn_in_sentences
from robusttrain.core.telling import PAUSE, Pace, duration


def told(counts, seconds, total=100):
    """The lines of work that is counted so, every so many seconds."""
    said, now = [], [0.0]
    steps = Steps("attacking", total, said.append, lambda: now[0])
    for count in counts:
        now[0] += seconds
        steps.advance(count)
    return said


def test_a_line_says_how_far_it_is_and_what_is_left():
    assert told([25, 25, 25, 25], PAUSE) == [
        "attacking: 25% done, about 00:01:00 left",
        "attacking: 50% done, about 40 s left",
        "attacking: 75% done, about 20 s left",
    ]


def test_what_an_earlier_run_has_done_took_no_time_of_this_one():
    """Half is found done; a quarter takes a minute; the last quarter will take another."""
    now = [0.0]
    pace = Pace(100, lambda: now[0])
    pace.advance(50, spent=False)
    assert pace.left() is None, "nobody knows yet"
    now[0] = 60.0
    pace.advance(25)
    assert pace.left() == 60.0
    pace.advance(100)
    assert pace.left() == 0


def test_quick_steps_share_lines_and_short_work_has_none():
    assert len(told([1] * 100, PAUSE / 10)) == 9
    assert told([10] * 10, PAUSE / 11) == []


def test_nothing_is_said_of_more_than_everything():
    assert told([200, 1], PAUSE) == []


def test_without_a_total_nothing_is_said(capfd):
    with bar("attacking", None) as advance:
        advance(1)
    with bar("attacking", 0) as advance:
        advance(1)
    assert capfd.readouterr().err == ""


def test_in_a_file_a_bar_is_lines(capfd, monkeypatch):
    monkeypatch.setattr("robusttrain.core.console.PAUSE", 0.0)
    with bar("attacking", 4) as advance:
        advance(1)
    line = capfd.readouterr().err
    assert line.startswith("attacking: 25% done")
    assert "\r" not in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59, "59 s"), (61, "00:01:01"), (7325, "02:02:05")]
)
def test_lengths_of_time(seconds, said):
    assert duration(seconds) == said


def test_warnings_about_models_are_sentences_each_once(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    warn_in_sentences()
    ours, others = str(PACKAGE / "models" / "outputs.py"), "/elsewhere/torch/nn.py"
    assert warnings.formatwarning("two tensors", UserWarning, ours, 41) == "warning: two tensors\n"
    assert warnings.formatwarning("two tensors", UserWarning, ours, 122) == ""
    assert warnings.formatwarning("other", UserWarning, ours, 122) == "warning: other\n"
    for category, file in ((UserWarning, others), (FutureWarning, ours)):
        assert warnings.formatwarning("old", category, file, 7, "x").startswith(f"{file}:7: ")
