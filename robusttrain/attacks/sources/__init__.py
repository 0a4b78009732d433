"""What the attacker differentiates: from the defended classifier to a model, built of models
alone.
"""
