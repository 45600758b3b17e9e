"""Rows of a store -> tables, figures, pages."""
