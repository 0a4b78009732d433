"""What the commands do. train.py and evaluate.py at the top level only call these."""
