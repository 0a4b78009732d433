"""Sources: from the defended classifier to the model that the attacker differentiates."""
