"""fwbench beside other code on the same problems in one run; prints, and writes no report."""
