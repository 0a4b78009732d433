"""Every study at scale smoke: three files, nothing computed twice, and it goes on where it was
stopped.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from robusttrain.running import jobs
from robusttrain.running.jobs import Job
from studies import finite_differences, mean_transformation

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
STUDIES = sorted(
    path.stem
    for path in (ROOT / "studies").glob("*.py")
    if "\ndef run(arguments" in path.read_text()
)


#: Those whose parts the others run too.
LONG = (
    *("beyond_the_paper", "bpda_steps", "choosing_f_b", "ensemble_adversarial", "input_diversity"),
    *("noise_reduced_gradient", "randomization", "recipes", "tiny_imagenet"),
    "transferable_ensembles",
)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.long] * (each in LONG)) for each in STUDIES]
)
def test_smoke(name, run_study, told, shared, monkeypatch):
    folder = shared / name
    done = run_study(name, folder)
    assert done.code == 0, done.err
    report = told(folder)
    assert report["command"].startswith(f"python -m studies.{name} ")
    assert report["threat"]["norm"] == "linf"
    # Those of transfer between models have radii of their own.
    own = "Training: preset" not in report["settings"]["setting"]
    assert report["threat"]["epsilon"] == (pytest.approx(0.1, abs=0.1) if own else 0.031)
    assert report["settings"]["images"] > 0
    assert report["scale"] == "smoke"
    assert all(set(row) == set(report["table"][0]) for row in report["table"])
    assert all({"key", "command", "seconds"} <= set(point) for point in report["points"].values())
    assert any("paper" in column for column in report["table"][0])
    text = (folder / "study.md").read_text()
    assert report["command"] in text
    assert text.count("\n| ") == len(report["table"]) + 1
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")

    kept = {path: path.stat().st_mtime_ns for path in (folder / "points").glob("*/done.json")}
    assert len(kept) == len(report["points"])
    monkeypatch.setattr(Job, "carry_out", lambda job, logs, telling: pytest.fail("computed again"))
    again = run_study(name, folder)
    assert again.code == 0, again.err
    assert "0 of them to be measured, 0 models to be trained" in again.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert told(folder) == report


def test_all_of_the_paper_is_there():
    assert set(LONG) < set(STUDIES)
    figures = {
        "choosing_f_b",
        "mean_transformation",
        "finite_differences",
        "bpda_steps",
        "radius",
        "eot_samples",
    }
    assert figures | {"black_box", "comparison", "tiny_imagenet"} <= set(STUDIES)


def test_interrupted_with_ctrl_c(run_study, tmp_path, monkeypatch):
    measured = []

    def interrupted(plan, telling, real=jobs.evaluate):
        if measured:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as stopped:
                raise SystemExit(1) from stopped  # what Lightning makes of Ctrl-C
        measured.append(plan)
        real(plan, telling)

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "evaluate", interrupted)
        stopped = run_study("radius", tmp_path)
    assert stopped.code == 130
    assert "the same command goes on from there" in stopped.err
    (first,) = (tmp_path / "points").glob("*/done.json")
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "study.json").exists()

    done = run_study("radius", tmp_path)
    assert done.code == 0, done.err
    assert "4 points, 3 of them to be measured" in done.err
    assert first.stat().st_mtime_ns == before


@pytest.mark.long
def test_killed(run_study, shared, told, tmp_path):
    assert run_study("eot_samples", shared / "eot_samples").code == 0  # its models are there now
    places = [
        "--output",
        tmp_path,
        "--checkpoints",
        shared / "checkpoints",
        "--logs",
        shared / "logs",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.eot_samples", *map(str, places)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "points").glob("*/done.json")):
            assert process.poll() is None, "the study ended before it kept anything"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    kept = {path: path.read_text() for path in (tmp_path / "points").glob("*/done.json")}
    assert not (tmp_path / "study.json").exists(), "the study had ended before it was killed"

    done = run_study("eot_samples", tmp_path)
    assert done.code == 0, done.err
    assert all(path.read_text() == text for path, text in kept.items())
    alone = told(shared / "eot_samples")
    # The same figures as a study that nobody stopped
    assert told(tmp_path)["table"] == alone["table"]


BAD = [
    (["--scale", "medium"], "argument --scale: invalid choice: 'medium'"),
    (["--scale", "digits"], "argument --scale: invalid choice: 'digits'"),
    (["--scal", "smoke"], "unrecognized arguments: --scal smoke"),
    (["--radius", "3"], "unrecognized arguments: --radius 3"),
    (["--scale", "small"], "--root: scale small needs CIFAR-10 as an image folder"),
    (
        ["--scale", "small", "--root", "nowhere"],
        "--root nowhere: no such folder; give the folder with the data",
    ),
    (["--scale", "small", "--root", "tests"], "(looked for .*<class>/.*give --root DIR"),
    (
        ["--scale", "small", "--root", "tests", "--f_b", "nothing.pth"],
        "--f_b nothing.pth: no such file; give the weights of an adversarially trained f_b",
    ),
    (["--root", "tests"], "--root tests: scale smoke makes do with embedded digits"),
    (["--output", "README.md/here"], "--output README.md/here: cannot be written to"),
    (["--checkpoints", "README.md"], "--checkpoints README.md: cannot be written to"),
]


@pytest.mark.parametrize(("arguments", "told"), BAD)
def test_bad_input_is_one_line(arguments, told, run_study, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = run_study("radius", tmp_path, *arguments)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("radius.py: error: ")
    for part in told.split(".*"):
        assert part in line


def test_tiny_imagenet_says_what_to_download(run_study, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_study(
        "tiny_imagenet", tmp_path / "out", "--scale", "small", "--root", tmp_path / "empty"
    )
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "tiny-imagenet-200.zip" in line
    assert "--root DIR" in line


@pytest.mark.parametrize("reason", ["is text, not weights", "does not fit"])
def test_an_f_b_that_cannot_be_one_is_refused_before_anything_is_trained(reason, run_study, folder):
    f_b = folder / "f_b.pth"  # text
    if reason == "does not fit":
        torch.save({"another": torch.ones(1)}, f_b)
    options = ("--scale", "small", "--root", folder, "--f_b", f_b)
    done = run_study("radius", folder / "out", *options)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(f"radius.py: error: --f_b {f_b}: ")
    assert reason in line


def test_imagenet_is_named_as_the_study_names_it(run_study, tmp_path):
    (tmp_path / "empty").mkdir()
    options = ("--scale", "small", "--imagenet", tmp_path / "empty")
    done = run_study("input_diversity", tmp_path / "out", *options)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.endswith("and give --imagenet DIR")


def test_finite_differences_of_equation_4_see_the_identity_and_nothing_else(
    run_study, told, shared
):
    """Where no sign flips, the ball moves along with x: dg_i/dx_i is 1, and 0 for every other
    pixel.
    """
    assert run_study("finite_differences", shared / "finite_differences").code == 0
    point = told(shared / "finite_differences")["points"]["image 0"]
    smallest = {place: estimates[0] for place, estimates in point["estimates"].items()}
    assert smallest["same"] == pytest.approx(1, abs=0.2)
    assert smallest["far"] == 0
    assert len(point["h"]) == finite_differences.SETTINGS["smoke"][1]


def test_pictures_stay_out_of_the_report(run_study, told, shared):
    assert run_study("mean_transformation", shared / "mean_transformation").code == 0
    for point in told(shared / "mean_transformation")["points"].values():
        assert "pictures" not in point
        assert len(point["distances"]) == mean_transformation.SETTINGS["smoke"].images
