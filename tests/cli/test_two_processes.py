"""Two processes share the images of an evaluation, each image counts once, and no verdict depends
on it.
"""

import json

import pytest
import torch

from robusttrain.evaluation import Records

# Convolutions sum in another order in batches of another size: the last bits of a logit differ, and
# with them, rarely, the sign of a gradient. So at most this share of verdicts may differ.
FLIPS = 0.01


@pytest.fixture(scope="module")
def evaluated(run_forked, run_here, trained, tmp_path_factory):
    def run(batch_size, processes):
        output = tmp_path_factory.mktemp("evaluated")
        ddp = ["--trainer.devices", 2, "--trainer.strategy", "ddp"] if processes == 2 else []
        common = [
            "--checkpoint",
            trained.best,
            "--images",
            101,
            "--draws",
            2,
            "--attack",
            "bpda-i-quick",
        ]
        common += [
            "--data.batch_size",
            batch_size,
            "--save_verdicts",
            "true",
            "--trainer.accelerator",
            "cpu",
        ]
        launch = run_forked if processes == 2 else run_here
        done = launch("evaluate.py", *common, *ddp, "--output", output)
        assert done.code == 0, done.err
        return json.loads((output / "results.json").read_text()), Records.read(
            output / "verdicts.safetensors"
        )

    return run


@pytest.fixture(scope="module")
def alone(evaluated):
    return evaluated(64, 1)


@pytest.mark.parametrize("batch_size", [7, pytest.param(64, marks=pytest.mark.long)])
def test_two_processes_find_what_one_finds(evaluated, alone, batch_size):
    found, kept = evaluated(batch_size, 2)
    expected, one = alone
    assert found["images"] == 101
    assert torch.equal(kept.index, one.index)
    assert torch.equal(kept.label, one.label)
    flips = {}
    for name in ("clean", "bpda-i-quick"):
        for fact in ("score", "select"):
            mine, other = (each.of(name).columns()[fact] for each in (kept, one))
            flips[name, fact] = int((mine != other).any(dim=1).sum())
            assert flips[name, fact] <= FLIPS * 101, flips
    print(
        f"batches of {batch_size}, two processes against one in batches of 64: images with another"
        f" verdict {flips}"
    )
    row, other = found["attacks"]["bpda-i-quick"], expected["attacks"]["bpda-i-quick"]
    assert row["robust_accuracy"] == pytest.approx(other["robust_accuracy"], abs=FLIPS)
    assert row["gradient_evaluations_per_image"] == other["gradient_evaluations_per_image"] == 10
