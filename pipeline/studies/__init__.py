"""Many trainings held against each other: comparisons, experiments, groups of tasks."""
