"""reports/first_order: Frank-Wolfe beside its first-order rivals, what alpha fixes, and what SparseFW's theory says."""
