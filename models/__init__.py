"""The mathematics: batches, embedding tables, multi-task networks, towers and the union-space loss."""
