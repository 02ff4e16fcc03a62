"""Reading and writing the tensors of all ranks, through torch.distributed.checkpoint."""
