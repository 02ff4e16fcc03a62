"""One run: ingest, sharding, the train step, checkpoints, storage and evaluation."""
