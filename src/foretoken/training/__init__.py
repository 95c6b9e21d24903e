"""Train speculators on the states of a frozen base model: first on text, then on what the base itself generates."""
