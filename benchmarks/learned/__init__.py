"""reports/learned: what trained weights bring."""
