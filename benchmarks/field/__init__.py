"""reports/field: every method beside all others, judged alike."""
