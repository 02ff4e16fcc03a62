"""Tensors of all ranks to files and back, through torch.distributed.checkpoint."""
