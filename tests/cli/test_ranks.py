"""A task of a job that carries out a command of its own is no helper of another process."""

import json

import pytest
from pytorch_lightning.utilities import rank_zero_only

from robusttrain.commands.ranks import alone
from robusttrain.core.console import console
from robusttrain.core.telling import first_process

pytestmark = pytest.mark.filterwarnings("ignore")

TRAIN = ["--config", "tests/conf/dropout.yaml", "--trainer.max_epochs", 1, "--logger", "csv"]


@pytest.fixture(autouse=True)
def second_task(monkeypatch):
    """As ``SLURM_PROCID=1`` leaves it when Lightning is read."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(console, "quiet", True)


@pytest.mark.parametrize("launcher", ["Lightning", "Slurm"])
def test_a_helper_stays_silent(monkeypatch, launcher):
    variables = {"LOCAL_RANK": "1"}
    if launcher == "Slurm":
        variables = {f"SLURM_{name}": "0" for name in ("JOB_ID", "NODEID")}
        variables |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "here"}
        variables |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    alone({"devices": 2, "strategy": "ddp", "accelerator": "cpu"})
    assert not first_process()
    assert console.quiet


LSF = {"LSB_JOBID": "1", "LSB_DJOB_NUMPROC": "2", "LSB_DJOB_RANKFILE": "/nowhere"}
LSF |= {"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_LOCAL_RANK": "0"}
SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(("job", "said"), [(LSF, "'/nowhere'"), (SLURM, "ntasks-per-node=2")])
def test_what_lightning_refuses_of_a_cluster_is_one_line(command, monkeypatch, job, said):
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    done = command("evaluate.py", "--checkpoint", "digits-standard", "--attack", "fgsm")
    assert done.code == 2
    line = done.err.splitlines()[-1]
    assert line.startswith("evaluate.py: error: --trainer: ")
    assert said in line


def test_a_training_of_one_process_claims_its_folder_and_writes_its_curves(command, tmp_path):
    places = ["--checkpoints", tmp_path / "checkpoints", "--logs", tmp_path / "logs"]
    done = command("train.py", *TRAIN, *places)
    assert done.code == 0, done.err
    assert "done: after 1 epoch" in done.err
    (folder,) = (tmp_path / "checkpoints").glob("*/version_0")
    assert (folder / ".training.lock").is_file()
    assert len([*(tmp_path / "logs").rglob("metrics.csv")]) == 1


def test_a_strict_evaluation_of_one_process_has_its_verdict(command, tmp_path):
    line = ["--checkpoint", "digits-g", "--attack", "pgd", "--attack.steps", 2, "--images", 6]
    line += ["--draws", 1, "--strict", "true", "--output", tmp_path]
    done = command("evaluate.py", *line)
    verdict = json.loads((tmp_path / "results.json").read_text())["verdict"]
    assert verdict != "sound"
    assert done.code == 3
    assert "written: " in done.err
    assert (tmp_path / "report.html").is_file()
