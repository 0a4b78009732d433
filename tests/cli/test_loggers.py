"""``--logger``: where the curves of a training go."""

import csv
import sys

import pytest
import yaml

from robusttrain.config.training import read_plan
from robusttrain.core.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = ["--config", "tests/conf/dropout.yaml", "--trainer.max_epochs", 2]
RUN = "digits-vggsmall"


@pytest.fixture
def train(command, tmp_path):
    """Trains for two epochs or more, into a folder of this test."""

    def run(*arguments, code=0):
        places = ["--checkpoints", tmp_path / "checkpoints", "--logs", tmp_path / "logs"]
        done = command("train.py", *OPTIONS, *places, *arguments)
        assert done.code == code, done.err
        return done

    return run


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_several_are_named_in_one_way_or_another():
    for line in ("--logger csv,tensorboard", "--logger csv --logger tensorboard"):
        assert read_plan(line.split()).loggers == ["csv", "tensorboard"]
    assert read_plan(["--logger", "[csv, tensorboard, csv]"]).loggers == ["csv", "tensorboard"]
    assert read_plan(said=[{"logger": ["csv"]}]).loggers == ["csv"]
    assert read_plan([]).loggers == ["tensorboard"]
    with pytest.raises(OptionError, match="--logger = 'wandbb': .*did you mean wandb"):
        read_plan(["--logger", "csv,wandbb"])


def test_csv_files_have_figures_and_configuration_and_lose_nothing(train, tmp_path):
    done = train("--logger", "csv", "--optimizer", "adamw", "--schedule", "constant")
    folder = tmp_path / "logs" / RUN / "version_0"
    assert not [*folder.rglob("*tfevents*")]
    assert done.err.splitlines()[-1] == f"curves: {folder / 'csv' / 'metrics.csv'}"
    found = rows(folder / "csv" / "metrics.csv")
    names = {"val/accuracy", "robust/pgd-quick", "lr-AdamW/pg1", "overfitting/fall"}
    assert names <= {*found[0]}
    assert len([row for row in found if row["val/accuracy"]]) == 2
    hyperparameters = yaml.safe_load((folder / "csv" / "hparams.yaml").read_text())
    assert hyperparameters["training"]["optimizer"] == "adamw"
    more = ["--optimizer", "adamw", "--schedule", "constant", "--ckpt_path", "last"]
    train("--logger", "csv", *more, "--trainer.max_epochs", 3)
    assert rows(folder / "csv" / "metrics.csv") == found
    after = rows(folder / "csv-2" / "metrics.csv")
    assert [row["epoch"] for row in after if row["val/accuracy"]] == ["2"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_trained(train, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    done = train("--logger", f"tensorboard,{name}", code=2)
    line = f'train.py: error: --logger {name}: needs pip install "robusttrain[{name}]"'
    assert done.err.splitlines() == [line]
    assert not [*tmp_path.iterdir()]


def test_wandb_offline(train, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = train("--logger", "wandb,tensorboard", "--training.schedule", "constant")
    assert wandb.run is None, "the run is over"
    (kept,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    assert next(kept.glob("*.wandb")).stat().st_size > 0
    assert f"wandb sync {tmp_path / 'logs' / 'wandb'}" in done.err
    assert [*(tmp_path / "logs" / RUN / "version_0").glob("*tfevents*")]
    more = ["--training.schedule", "constant", "--trainer.max_epochs", 3, "--ckpt_path", "last"]
    train("--logger", "wandb", *more)
    names = {each.name.rpartition("-")[2] for each in kept.parent.glob("offline-run-*")}
    assert names == {kept.name.rpartition("-")[2]}, "it goes on as the same run"


def test_wandb_without_a_key_is_refused_in_one_line(train, monkeypatch, tmp_path):
    pytest.importorskip("wandb").teardown()  # it reads its variables once
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    done = train("--logger", "wandb", code=2)
    last = done.err.splitlines()[-1]
    assert last.startswith("train.py: error: --logger wandb: ")
    assert last.endswith("or WANDB_MODE=offline, which needs no account")
    assert not [*(tmp_path / "checkpoints").rglob("*.ckpt")]


def test_mlflow_in_a_database_of_the_folder_of_logs(train, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    constant = ["--training.schedule", "constant"]
    train("--logger", "mlflow", *constant)
    # A parameter that changed: MLflow takes none twice.
    moved = ["--data.workers", 1, "--trainer.max_epochs", 3]
    train("--logger", "mlflow", *constant, *moved, "--ckpt_path", "last")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'robusttrain'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training/learning_rate"] == "0.05"
    assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == 3
