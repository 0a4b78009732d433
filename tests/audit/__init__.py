"""A corpus of evaluations with known defects, and sound ones: what the audit must name, and what it
must not accuse.
"""
