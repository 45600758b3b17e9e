"""reports/theory: what is guaranteed of the relaxation and of its roundings, beside what is true."""
