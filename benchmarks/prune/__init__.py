"""reports/prune: a whole model pruned by every method."""
