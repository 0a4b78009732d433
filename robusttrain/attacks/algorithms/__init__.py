"""Attacks: one algorithm in each file, with its loop visible."""
