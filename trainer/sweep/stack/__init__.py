"""Runs that are trained together, as one stacked model."""
