"""Train a robust classifier: ``python train.py --defense advtransform``."""

from robusttrain.cli import main
from robusttrain.commands.train import run

if __name__ == "__main__":
    main(run)
