"""What a model is worth: metrics in each task's own sample space, baselines, and the table that shows them."""
