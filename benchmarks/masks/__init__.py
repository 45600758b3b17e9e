"""reports/masks: which ingredients find the best masks."""
