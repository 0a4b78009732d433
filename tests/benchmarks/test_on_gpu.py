"""`benchmarks/on_gpu.sh` on a CPU, and what its parts make of their measurements."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.both_devices import differences
from benchmarks.pack import copy_images
from benchmarks.speed import beside
from benchmarks.summary import summary
from benchmarks.synchronisations import WAITS, places
from robusttrain.core.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
SPEEDS = {"pgd", "g", "eot", "training", "autoattack"}
PARTS = {"verdicts", "verdicts-tf32", "synchronisations", "draws", "formats", "compile"}.union(
    SPEEDS, (f"{each}-compiled" for each in SPEEDS)
)


def script(*arguments, **variables):
    variables = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, env=variables, check=False
    )


@pytest.mark.long
def test_one_part_of_the_script(tmp_path):
    out = tmp_path / "out"
    result = script("--device", "cpu", "--quick", "--only", "g", out)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads((out / "summary.json").read_text())
    assert set(told["seconds"]) == {"g"}
    assert told["failed"] == {}
    assert set(told["left_out"]) == PARTS - {"g"}
    report = json.loads((out / "g.json").read_text())
    times = report["as_it_is"]["time_of_ours_relative_to"]
    assert set(times["ours bfloat16"]) == {"limit bfloat16", "loop"}
    again = script("--device", "cpu", out)
    assert again.returncode == 2
    assert "holds another run" in again.stderr


@pytest.mark.parametrize("arguments", [(), ("--device",), ("--nothing", "out"), ("one", "two")])
def test_the_script_shows_its_usage(arguments):
    result = script(*arguments)
    assert result.returncode == 2
    assert "--quick" in result.stderr


def test_the_script_refuses_a_part_that_there_is_not(tmp_path):
    result = script("--only", "g pdg", tmp_path)
    assert result.returncode == 2
    assert "--only pdg: no such part" in result.stderr


def test_a_part_that_fails_is_named_and_does_not_hide_the_others(tmp_path):
    (tmp_path / "parts.tsv").write_text(
        "verdicts\t1\t5\t90\npgd\t124\t91\t90\ng\t0\t7\t90\neot\t0\t3\t90\n"
        "draws\tleft out: not among --only\t0\t0\n"
    )
    (tmp_path / "verdicts.log").write_text("Traceback\nValueError: no\n\n")
    (tmp_path / "g.json").write_text('{"left_out": {"compiled": "RuntimeError: no"}}')
    told = summary(tmp_path)
    assert told["seconds"] == {"verdicts": 5, "pgd": 91, "g": 7, "eot": 3}
    assert told["failed"] == {
        "verdicts": "exit code 1, ValueError: no",
        "pgd": "took more than its 90 s",
        "eot": "exit code 0, nothing in its log",  # it has written no report
    }
    assert told["left_out"] == {
        "g": {"compiled": "RuntimeError: no"},
        "draws": "left out: not among --only",
    }


def test_a_compilation_that_fails_is_left_out_with_its_reason(tmp_path, monkeypatch):
    def measured(arguments, peers):
        raise RuntimeError("no compiler\nmore")

    monkeypatch.setattr(speed, "measured", measured)
    output = tmp_path / "g.json"
    monkeypatch.setattr(sys, "argv", ["speed", "g", "--output", str(output)])
    with pytest.raises(RuntimeError):
        speed.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--compiled"])
    speed.main()
    told = json.loads(output.read_text())["left_out"]
    assert told["compiled"] == "RuntimeError: no compiler"


def test_verdicts_that_differ_stand_with_both_margins():
    right = torch.tensor([[True, True], [False, False], [True, True]])
    other = torch.tensor([[True, True], [False, False], [True, False]])
    margin = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.5, 0.25]])
    moved = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.5, -0.25]])
    told = differences((right, other), (margin, moved))
    assert (told["verdicts"], told["verdicts_that_differ"], told["images_that_differ"]) == (6, 1, 1)
    assert told["by_image"] == [{"image": 2, "right": [1.0, 0.5], "margin": [0.375, 0.125]}]


def test_times_are_compared_within_a_dtype_and_with_peers_of_one():
    seconds = {"ours float32": 1.0, "ours bfloat16": 0.5, "limit float32": 2.0, "torchattacks": 4.0}
    assert beside(seconds) == {
        "ours float32": {"limit float32": 0.5, "torchattacks": 0.25},
        "ours bfloat16": {"torchattacks": 0.125},
    }


def test_waits_of_a_gpu_are_told_from_other_warnings():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn_explicit(WAITS, UserWarning, "/x/robusttrain/attacks/apgd.py", 7)
        warnings.warn_explicit("another", UserWarning, "/x/robusttrain/attacks/apgd.py", 7)
    assert places(caught) == {"attacks/apgd.py:7": 2}


def test_the_pack_has_as_many_images_of_each_class(tmp_path):
    for name in "ab":
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "data" / "test" / name / f"{number}.jpg").write_bytes(b"image")
    assert copy_images(tmp_path / "data", tmp_path / "test", 6) == 6
    assert sorted(path.name for path in (tmp_path / "test" / "b").iterdir()) == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
    ]
    with pytest.raises(UserError, match="--root"):
        copy_images(tmp_path / "nowhere", tmp_path / "other", 6)
