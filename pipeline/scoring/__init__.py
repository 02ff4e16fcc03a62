"""Vectors of users, computed once and scored against many items."""
