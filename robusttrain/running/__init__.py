"""Carries out plans: builds what they describe, runs it, and gives back the facts.

Prints nothing: what there is to say on the way goes to a `Telling`.
"""
