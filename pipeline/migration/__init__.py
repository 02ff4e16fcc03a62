"""A line that goes on with another schema or another model."""
