"""Files: written whole or not at all, hashed, locked, journalled; and weights of any origin."""
