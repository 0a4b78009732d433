"""Attacks, one algorithm a file, its loop visible."""
