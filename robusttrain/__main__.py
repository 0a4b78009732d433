"""``python -m robusttrain COMMAND ...``, the same as ``robusttrain COMMAND ...``."""

from robusttrain.commands.entry import console

if __name__ == "__main__":
    console()
