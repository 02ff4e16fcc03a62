"""Runs on Kubernetes: what a RayJob must be before it is applied."""
