"""What attacks are put together from: objectives, gradient estimators, update rules and threats."""
