"""Passes over a log beside training: statistics, popularity, admission of ids, profiles."""
