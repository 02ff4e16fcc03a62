"""Synthetic video logs: a world of users and videos with known probabilities."""
