"""Synthetic video logs: a world of users and videos whose every probability is known."""
