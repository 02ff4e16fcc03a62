"""Batch normalisation over the real rows of all ranks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.all_reduce import Ranks


class RealRowsNorm(nn.Module):
    """y = gamma (v - mean) / sqrt(var + eps) + beta, for each of D channels over all real rows and their tokens.

    nn.BatchNorm1d would count padding, and one rank's rows alone, so the model would depend on the number of workers.
    Here mean and variance (with the divisor N) cover the real rows of all ranks, and gradients flow through both to
    every rank. In evaluation, running averages replace them; these are in every checkpoint.

    Args:
        num_channels: D.
        ranks: All ranks, for sums over them.
        momentum: Share of a step in the running averages.
        eps: Term added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, ranks: Ranks, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.ranks, self.momentum, self.eps = ranks, momentum, eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(
        self, values: Float[Tensor, "batch token channel"], is_real: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch token channel"]:
        """Normalise the channels.

        Args:
            values: Channels of any number of tokens per row.
            is_real: Mask of the rows that count; None: all.
        """
        values = values.to(self.weight.dtype)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            real = values.new_ones(len(values)) if is_real is None else is_real.to(values)
            mean, variance = self._moments(values, real.view(-1, 1, 1))
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        return (values - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def _moments(self, values: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the channels, in two sums: subtracting two large squares would lose digits."""
        count = self.ranks.total(real.sum() * values.shape[1]).detach().clamp(min=1)
        mean = self.ranks.total((values * real).sum((0, 1))) / count
        return mean, self.ranks.total(((values - mean) * real).square().sum((0, 1))) / count
