"""Lightning's trainer on the pretend device."""

import pytorch_lightning as pl
from pretend_device import DEVICE
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from waits import counted


class Accelerated(Accelerator):
    """The device, as Lightning wants to know it."""

    def setup_device(self, device):
        pass

    def get_device_stats(self, device):
        return {}

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [DEVICE] * devices

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return DEVICE.type


class Waited(pl.Callback):
    """The waits of each training batch, its step of the optimizer included."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, *_):
        self._counting = counted()
        self.batches.append(self._counting.__enter__())

    def on_train_batch_end(self, *_):
        self._counting.__exit__(None, None, None)


def trainer(callbacks=(), **options):
    """A trainer of one epoch of two batches, on the device."""
    return pl.Trainer(
        **{
            "max_epochs": 1,
            "limit_train_batches": 2,
            "limit_val_batches": 1,
            "callbacks": [*callbacks],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "strategy": SingleDeviceStrategy(DEVICE, accelerator=Accelerated()),
            **options,
        }
    )
