"""Comparison of many trainings: comparisons, experiments, groups of tasks."""
