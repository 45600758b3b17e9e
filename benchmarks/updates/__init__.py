"""reports/updates: which weight update leaves the least error."""
