"""reports/seeds: the methods that this project was created from, their state and their rows in the other reports."""
