"""Training worker, top to bottom; the days that a group of workers trains; publication of the result; dry runs."""
