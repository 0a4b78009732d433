"""Train a robust classifier: ``python train.py --defense advtransform``."""

from robusttrain.commands.entry import start

if __name__ == "__main__":
    start("train")
