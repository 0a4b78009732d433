"""From every way of saying something (command line, YAML, checkpoint) to objects."""
