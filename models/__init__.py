"""Mathematics of the models: batches, embedding tables, multi-task networks, towers and the union-space loss."""
