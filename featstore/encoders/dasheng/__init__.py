"""Dasheng models as encoders, through the package of that name."""
