"""Metrics in each task's own sample space, from batches to intervals."""
