"""Studies: ``benchmarks/NAME`` measures and writes ``reports/NAME``; see README.md."""
