"""A training worker, top to bottom; the days that a group of workers trains; what is published of them."""
