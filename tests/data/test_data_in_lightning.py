"""What reaches the steps of a LightningModule."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from robusttrain.core.rng import Rng
from robusttrain.data import Digits
from robusttrain.data.augment import crop_and_flip

pytestmark = pytest.mark.filterwarnings("ignore")


class Recorder(LightningModule):
    """Keeps the batches that reach the steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated, self.tested = [], [], []

    def training_step(self, batch, index):
        self.trained.append((self.current_epoch, batch))
        return self.weight * 0

    def validation_step(self, batch, index):
        self.validated.append(batch)

    def test_step(self, batch, index):
        self.tested.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(data, epochs=2, ckpt_path=None, folder=None, **options):
    """A recorder that was trained, and its trainer."""
    model = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model, trainer


def test_only_training_batches_are_augmented(tmp_path):
    data = Digits(batch_size=500, crop=2)
    data.flip = True
    model, trainer = trained(data, folder=tmp_path)
    train = data._train.images
    for epoch, batch in model.trained:
        rng = Rng.for_images(0, batch.indices).fold("augment").fold(epoch)
        expected = crop_and_flip(train[batch.indices], rng, 2, True).float() / 255
        assert torch.equal(batch.images, expected)
        assert not torch.equal(batch.images, train[batch.indices].float() / 255)
    assert [epoch for epoch, _ in model.trained] == [0, 0, 1, 1]
    for batch in model.validated:
        assert torch.equal(batch.images, train[batch.indices].float() / 255)
    assert data._test is None
    trainer.test(model, data, verbose=False)
    assert torch.equal(
        torch.cat([batch.images for batch in model.tested]), data._test.images.float() / 255
    )


def test_a_resumed_run_sees_the_same_batches(tmp_path):
    whole, _ = trained(Digits(batch_size=500), epochs=3, folder=tmp_path)
    _, trainer = trained(Digits(batch_size=500), epochs=2, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = trained(
        Digits(batch_size=500), epochs=3, ckpt_path=tmp_path / "two.ckpt", folder=tmp_path
    )
    last = [batch for epoch, batch in whole.trained if epoch == 2]
    assert len(resumed.trained) == len(last) > 1
    for (epoch, batch), expected in zip(resumed.trained, last, strict=True):
        assert epoch == 2
        assert torch.equal(batch.indices, expected.indices)
        assert torch.equal(batch.images, expected.images)
    first = [batch.indices for epoch, batch in whole.trained if epoch == 0]
    assert not torch.equal(first[0], last[0].indices)


def test_overfitting_repeats_whole_batches(tmp_path):
    model, _ = trained(Digits(batch_size=16, crop=0), folder=tmp_path, overfit_batches=2)
    assert len(model.trained) == 4
    assert [len(batch.labels) for _, batch in model.trained] == [16] * 4
    for (_, first), (_, second) in zip(model.trained[:2], model.trained[2:], strict=True):
        assert torch.equal(first.images, second.images)


def test_overfitting_takes_images_of_all_classes(tmp_path):
    """However the data set sorts them: image folders come class by class."""
    data = Digits(batch_size=64, crop=0)
    data.setup("fit")
    split = data._train
    data._train = split.only(split.subset[split.labels[split.subset].sort(stable=True).indices])
    model, _ = trained(data, folder=tmp_path, overfit_batches=1)
    assert len(model.trained[0][1].labels.unique()) >= 8
