"""Tools that every other room uses."""
