"""A process that is done takes batches of the others, and each image counts once."""

from types import SimpleNamespace

import pytest
import torch

from robusttrain.attacks import ProjectedGradient, Target
from robusttrain.core.in_float32 import InFloat32
from robusttrain.data import Digits
from robusttrain.evaluation import Engine, Scenario
from robusttrain.evaluation.helping import help_others
from robusttrain.models import MLP
from robusttrain.storage.journal import Journal


class Counted(Engine):
    """Notes the batches that it was asked for."""

    def run(self, images, labels, indices):
        self.asked = [*getattr(self, "asked", []), int(indices[0])]
        return super().run(images, labels, indices)


@pytest.fixture
def evaluation(tmp_path):
    """The engine, data and journal of one of two processes, and the other's batches."""
    data = Digits(batch_size=10)
    data.limit_test(60, seed=0)
    data.setup("test")
    torch.manual_seed(0)
    scenarios = {"attack": Scenario(ProjectedGradient(steps=1, step_size=0.1), Target())}
    engine = Counted(MLP(10, 1, 16), scenarios)
    engine.journal = Journal(tmp_path / "journal", {})
    trainer = SimpleNamespace(
        datamodule=data,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=0,
        world_size=2,
        num_test_batches=[3],
        lightning_module=InFloat32(),
    )
    data.trainer = trainer
    split, share = data.test_share(1)
    trainer.training = False
    return SimpleNamespace(
        engine=engine,
        trainer=trainer,
        data=data,
        journal=engine.journal,
        share=[split.at(split.subset[positions]) for positions in share],
    )


def done_by_owner(evaluation, number):
    batch = evaluation.data.on_after_batch_transfer(evaluation.share[number], 0)
    evaluation.engine.run(*batch)
    evaluation.engine.asked = []


def helped(evaluation):
    return help_others(evaluation.trainer, evaluation.engine, evaluation.journal)


def test_what_nobody_has_begun_is_done_from_the_back(evaluation):
    done_by_owner(evaluation, 0)
    advanced = []
    evaluation.engine.advance = advanced.append
    assert helped(evaluation) == 2
    firsts = [int(batch.indices[0]) for batch in evaluation.share]
    assert evaluation.engine.asked == [firsts[2], firsts[1]]
    assert advanced == []  # progress is that of a process's own share
    assert helped(evaluation) == 0
    # The owner finds them.
    assert all(evaluation.journal.has("attack", batch.indices) for batch in evaluation.share)


def test_what_its_owner_works_on_is_left_to_it(evaluation):
    done_by_owner(evaluation, 0)
    other = Journal(evaluation.journal.folder, {})
    with other.taken(evaluation.share[2].indices) as theirs:
        assert theirs
        assert helped(evaluation) == 1
    assert not evaluation.journal.has("attack", evaluation.share[2].indices)


def test_processes_with_a_journal_of_their_own_are_left_alone(evaluation):
    """They would never find what is done for them."""
    assert helped(evaluation) == 0
    assert not hasattr(evaluation.engine, "asked")
