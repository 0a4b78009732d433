"""Files of any kind: written whole or not at all, hashed, locked, and kept in a journal; weights
among them.
"""
