"""Analyses of a representation, each with its uncertainty (paper, section 4)."""
