"""Whole configuration as pydantic models: its sections, its loading, and its reference page."""
