"""Training and tuning of a model, and its checkpoints."""
