"""Two processes with half of a batch each train what one process trains with the whole batch."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from sharing import Smooth, cases, trained

from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Free, RobustTraining

ROOT = __file__.rpartition("/tests/")[0]

#: Largest difference between two weights: the order in which float64 numbers were added.
ROUNDING = 1e-13


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The weights of both of two processes, by case."""
    folder, port = tmp_path_factory.mktemp("together"), free_port()
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    told |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": 2, "PYTHONPATH": ROOT}
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/training/sharing.py", folder / f"{rank}.pt"],
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {name: str(value) for name, value in told.items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [each.communicate(timeout=300)[1] for each in processes]
    finally:
        for each in processes:
            each.kill()
    assert [each.returncode for each in processes] == [0, 0], "\n".join(said)[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", sorted(cases()))
@pytest.mark.filterwarnings("ignore")
def test_halves_of_a_batch_train_what_the_whole_batch_trains(together, tmp_path, name):
    alone, (first, second) = trained(*cases()[name], tmp_path), (each[name] for each in together)
    start = dict(Smooth().named_parameters())
    assert alone.keys() == first.keys() >= start.keys()
    for part, value in alone.items():
        assert torch.equal(first[part], second[part]), "the processes have drifted apart"
        apart = (first[part] - value).abs().max()
        moved = (value - start.get(part, 0)).abs().max()
        print(f"{name}, {part}: {apart:.1e} apart, moved by {moved:.1e}")
        assert apart <= ROUNDING < 1e-4 < moved


def test_a_checkpoint_of_all_processes_goes_on_in_each():
    """Each takes its own part of what an objective carries on."""
    rows = torch.arange(4.0).view(4, 1, 1, 1)
    for rank in range(2):
        objective = Free()
        module = RobustTraining(DefendedClassifier(None, Smooth()), 10, objective)
        module._trainer = SimpleNamespace(world_size=2, global_rank=rank)
        module.on_load_checkpoint({"objective": {"delta": rows}})
        assert torch.equal(objective.state()["delta"], rows[2 * rank : 2 * rank + 2])
