"""Checkpoints of a whole train state."""
