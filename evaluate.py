"""Attack a classifier and report what is left of it: ``python evaluate.py --attack bpda-eot``."""

from robusttrain.cli import main
from robusttrain.commands.evaluate import run

if __name__ == "__main__":
    main(run)
