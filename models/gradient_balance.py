"""Balancing of the tasks' gradients: taken task by task, measured over all ranks, and combined into one gradient.

The tables' optimizer is fused into the backward pass, so no table ever has a gradient per task. A table's gradient
comes from the gradient at the pooled embeddings, which can still be changed. So gradient balancing works on the dense
parameters that tasks share (`models.task_reach`) and on every feature's pooled embeddings (our reading, for all
methods). One backward pass of the result updates the tables.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.all_reduce import Ranks
from models.task_reach import ParameterBlock

if TYPE_CHECKING:  # the configuration imports this file, and must not import TorchRec
    from torchrec.sparse.jagged_tensor import KeyedTensor


class BalanceRule(nn.Module):
    """Interface of a method that combines the tasks' gradients.

    All methods sum the gradients with coefficients other than 1, computed from norms and dot products alone. The state
    of a rule is in buffers: it is in every checkpoint, and the same on all ranks.
    """

    def forward(
        self,
        grams: Float[Tensor, "part task task"],
        losses: Float[Tensor, " task"],
        is_present: Bool[Tensor, " task"],
    ) -> tuple[Float[Tensor, "part task"], Float[Tensor, " task"]]:
        """Compute the coefficients of a step.

        Args:
            grams: Dot products of the tasks' gradients, weighted by w_k(t), in every shared part; float64, over all
                ranks.
            losses: Unweighted L_k over all ranks; float64.
            is_present: True for tasks with a row of any rank in their space.

        Returns:
            The factor of each task's gradient in each part, and outside the shared parts.
        """
        raise NotImplementedError


def shared_slices(parameters: Mapping[str, Tensor], blocks: Sequence[ParameterBlock]) -> list[slice]:
    """Return the slices of shared blocks in the flat vector of all parameters.

    Args:
        parameters: Parameters by name, in the vector's order.
        blocks: Blocks of the parameters; those of one task or none are skipped.
    """
    starts = dict(zip(parameters, accumulate((p.numel() for p in parameters.values()), initial=0), strict=False))
    found = []
    for block in blocks:
        if len(block.tasks) > 1:
            parameter = parameters[block.name]
            row, start = parameter.numel() // len(parameter), starts[block.name]
            found.append(slice(start + block.start * row, start + block.stop * row))
    return found


def carry_over(loss: Float[Tensor, ""], meeting: "tuple[KeyedTensor, KeyedTensor]") -> Float[Tensor, ""]:
    """Carry the gradient of a loss on the detached embeddings over to the original ones.

    Args:
        loss: A loss that no rule balances.
        meeting: The pooled embeddings, and their detached copy.
    """
    pooled, leaf = meeting
    (at_pooled,) = torch.autograd.grad(loss, leaf.values(), retain_graph=True, materialize_grads=True)
    surrogate = (pooled.values() * at_pooled).sum()
    return loss + (surrogate - surrogate.detach())


class GradientBalance(nn.Module):
    """Module that replaces the sum of the tasks' gradients at shared parts by a rule's combination.

    Each task's dense gradient is averaged over all ranks before any measurement: the norm of a mean is not the mean of
    the norms. Each row of pooled embeddings is on one rank, so for these the dot products are summed. Hence the number
    of ranks changes nothing but the rounding.

    Args:
        rule: The method.
        shared: Slices of the shared parts in the flat vector of the dense parameters.
        ranks: All ranks, for sums over them.
    """

    def __init__(self, rule: BalanceRule, shared: Sequence[slice], ranks: Ranks) -> None:
        super().__init__()
        self.rule, self.shared, self.ranks = rule, list(shared), ranks

    def forward(
        self,
        losses: Float[Tensor, " task"],
        loss_weights: Float[Tensor, " task"],
        is_present: Bool[Tensor, " task"],
        meeting: "tuple[KeyedTensor, KeyedTensor]",
        dense: Sequence[nn.Parameter],
    ) -> Float[Tensor, ""]:
        """Return a scalar with the value sum_k w_k L_k and the balanced gradient.

        Args:
            losses: L_k on this rank's share, a function of the detached embeddings and of `dense`.
            loss_weights: w_k(t).
            is_present: As in `BalanceRule`; the same on all ranks.
            meeting: The pooled embeddings, and their detached copy.
            dense: The dense parameters, in the order of `shared`.
        """
        pooled, leaf = meeting
        at_pooled, at_dense = self._by_task(loss_weights * losses, leaf.values(), dense)
        with torch.no_grad():
            columns = self._columns(leaf)
            grams = [_gram(at_dense[:, part]) for part in self.shared]
            local = torch.stack([_gram(at_pooled[:, :, part].flatten(1)) for part in columns])
            grams.extend(self.ranks.total(local) / self.ranks.num**2)
            means = self.ranks.total(losses.detach().double()) / self.ranks.num
            of_parts, alone = self.rule(torch.stack(grams), means, is_present)
            for part, coefficients in zip(columns, of_parts[len(self.shared) :], strict=True):
                at_pooled[:, :, part] *= coefficients.to(at_pooled).view(-1, 1, 1)
            balanced = alone.to(at_dense) @ at_dense
            for part, coefficients in zip(self.shared, of_parts[: len(self.shared)], strict=True):
                balanced[part] = coefficients.to(at_dense) @ at_dense[:, part]
        flat = torch.cat([parameter.flatten() for parameter in dense])
        surrogate = (pooled.values() * at_pooled.sum(0)).sum() + torch.dot(flat, balanced)
        return (loss_weights * losses).sum().detach() + (surrogate - surrogate.detach())

    def _by_task(
        self, weighted: Float[Tensor, " task"], leaf: Tensor, dense: Sequence[nn.Parameter]
    ) -> tuple[Float[Tensor, "task batch width"], Float[Tensor, "task number"]]:
        """Return each task's gradient: this rank's at pooled embeddings, the ranks' mean at all dense parameters."""
        at_pooled, at_dense = [], []
        for loss in weighted:
            first, *rest = torch.autograd.grad(loss, [leaf, *dense], retain_graph=True, materialize_grads=True)
            at_pooled.append(first)
            at_dense.append(torch.cat([gradient.flatten() for gradient in rest]))
        return torch.stack(at_pooled), self.ranks.total(torch.stack(at_dense)) / self.ranks.num

    def _columns(self, leaf: "KeyedTensor") -> list[slice]:
        """Return the columns of each feature, by name, since sharding changes the order of keys."""
        ends = list(accumulate(leaf.length_per_key(), initial=0))
        places = {key: slice(*of) for key, of in zip(leaf.keys(), pairwise(ends), strict=True)}
        return [places[key] for key in sorted(places)]


def _gram(gradients: Float[Tensor, "task number"]) -> Float[Tensor, "task task"]:
    """Return the dot products of the tasks' gradients."""
    wide = gradients.double()
    return wide @ wide.t()
