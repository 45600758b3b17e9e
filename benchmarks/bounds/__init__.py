"""reports/bounds: how far the best masks can be from the optimum."""
