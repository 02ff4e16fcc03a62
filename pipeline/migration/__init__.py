"""Continuation of a line with another schema or another model."""
