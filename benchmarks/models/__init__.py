"""reports/models: which conclusions survive a change of model."""
