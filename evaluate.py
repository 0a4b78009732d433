"""Attack a classifier and report what is left of it: ``python evaluate.py --attack bpda-eot``."""

from robusttrain.commands.entry import start

if __name__ == "__main__":
    start("evaluate")
