"""Optimizers: fused into the backward pass for the tables, one flat reduction and Adam or SGD for the dense part."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from pipeline.config.optimizer import DenseOptimizerConfig, OptimizerConfig, TableOptimizerConfig


def fused_class(config: TableOptimizerConfig) -> type[torch.optim.Optimizer]:
    """Return the optimizer that TorchRec fuses into the backward pass of the tables."""
    return {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}[config.kind]


def fused_type(config: TableOptimizerConfig) -> EmbOptimType:
    """Return FBGEMM's name of the tables' optimizer."""
    return {
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "sgd": EmbOptimType.EXACT_SGD,
    }[config.kind]


def fused_arguments(config: TableOptimizerConfig) -> dict[str, Any]:
    """Return the arguments of `fused_class`."""
    return {"lr": config.learning_rate} | ({} if config.kind == "sgd" else {"eps": config.eps})


def build_dense_optimizer(config: DenseOptimizerConfig, parameters: Any) -> torch.optim.Optimizer:
    """Build the optimizer of dense parameters."""
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.Adam(
        parameters, lr=config.learning_rate, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


class StepOptimizer:
    """Optimizer of a train pipeline, called around every backward pass.

    Dense gradients are views of one flat buffer, so that a step needs one all-reduce with the same order of addition in
    every step and after every restart.

    Args:
        config: The declared optimizers.
        tables: The sharded tables' fused optimizer; it updates in the backward pass, and this class sets its rate.
        dense: Named parameters of the dense part.
        replicated: Named data-parallel tables, whose gradients TorchRec reduces itself.
        group: Process group of the training thread.
        rate_factors: Factors of the learning rate by names of dense parameters; 1 for the others.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        tables: KeyedOptimizer,
        dense: dict[str, nn.Parameter],
        replicated: dict[str, nn.Parameter],
        group: dist.ProcessGroup,
        rate_factors: Mapping[str, float] | None = None,
    ) -> None:
        self.config = config
        self._group = group
        self.dense_parameters = list(dense.values())
        self._buffer = _gradient_buffer(self.dense_parameters)
        self.bind_gradients()
        self.tables = tables
        factors = {id(dense[name]): factor for name, factor in (rate_factors or {}).items()}
        self.dense = KeyedOptimizerWrapper(
            dense, lambda of: build_dense_optimizer(config.dense, _by_factor(of, factors))
        )
        self.replicated = KeyedOptimizerWrapper(replicated, self.replicated_class) if replicated else None
        self._replicated_parameters = list(replicated.values())
        self.num_steps = 0
        self.day_began_at = 0

    @torch.no_grad()
    def begin_day(self) -> None:
        """Shrink the accumulators, and restart the dense part's warm-up, between two days."""
        self.day_began_at = self.num_steps
        kept = self.config.tables.keep_per_day
        if self.num_steps == 0 or kept == 1.0:
            return
        for state in self.tensors().get("tables", {}).values():
            for value in state.values():
                for local in _local_tensors(value):
                    local.mul_(kept)

    def replicated_class(self, parameters: Any) -> torch.optim.Optimizer:
        """Make the optimizer of data-parallel tables: the fused one's counterpart."""
        return fused_class(self.config.tables)(parameters, **fused_arguments(self.config.tables))

    def materialise(self) -> None:
        """Allocate the dense optimizers' state, which is otherwise allocated at the first step, for loading."""
        for optimizer in (self.dense, self.replicated):
            if optimizer is not None:
                optimizer.init_state()
        self.bind_gradients()  # init_state has replaced every gradient by its own zeros

    def tensors(self) -> dict[str, Any]:
        """Return the state of all optimizers, by part, parameter and name; views of the live tensors.

        A data-parallel table's state has the names and the shape of the sharded form, so that a checkpoint can be
        loaded under another sharding. Empty entries are left out: DCP would treat them as objects, on which ranks
        without a table, or with another optimizer, do not agree.
        """
        tables = dict(self.tables.state_dict()["state"])
        if self.replicated is not None:
            for name, state in self.replicated.state_dict()["state"].items():
                tables[name] = _as_fused(name.split(".")[-2], state)
        parts = {"tables": tables, "dense": self.dense.state_dict()["state"]}
        filled = {part: {name: state for name, state in found.items() if state} for part, found in parts.items()}
        return {part: found for part, found in filled.items() if found}

    def bind_gradients(self) -> None:
        """Make each dense gradient a view of the one buffer that is reduced."""
        first = 0
        for parameter in self.dense_parameters:
            parameter.grad = self._buffer[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients and set the step's learning rates, before the forward pass."""
        self._buffer.zero_()
        for parameter in self._replicated_parameters:
            parameter.grad = None
        factor = self.config.schedule.factor(self.num_steps)
        _set_rate(self.tables, self.config.tables.learning_rate * factor)
        warm = self.config.schedule.day_factor(self.num_steps - self.day_began_at) if self.day_began_at else 1.0
        _set_rate(self.dense, self.config.dense.learning_rate * factor * warm)
        if self.replicated is not None:
            _set_rate(self.replicated, self.config.tables.learning_rate * factor)
        self.tables.zero_grad()

    def step(self) -> None:
        """Reduce, clip and apply the dense gradients, after the backward pass."""
        dist.all_reduce(self._buffer, group=self._group)
        self._buffer.div_(self._group.size())
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.dense_parameters, self.config.clip_norm)
        self.dense.step()
        if self.replicated is not None:
            self.replicated.step()
        self.num_steps += 1


def _as_fused(table: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """Return RowWiseAdagrad's state in FBGEMM's form: one accumulator per row; without steps, as no rate decays."""
    return {f"{table}.momentum1": state["sum"].view(-1)} if "sum" in state else {}


def _local_tensors(value: Any) -> list[Tensor]:
    """Return this rank's pieces of a tensor, as views."""
    return [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]


def _by_factor(parameters: Any, factors: Mapping[int, float]) -> Any:
    """Return parameters in groups of one factor of the learning rate; without factors, as they are."""
    if not factors:
        return parameters
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": members, "rate_factor": factor} for factor, members in groups.items()]


def _set_rate(optimizer: KeyedOptimizer, rate: float) -> None:
    groups: Any = optimizer.param_groups
    for group in groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def _gradient_buffer(parameters: list[nn.Parameter]) -> Tensor:
    """Return one zeroed buffer for the gradients of all parameters."""
    size = sum(parameter.numel() for parameter in parameters)
    return torch.zeros(size, dtype=parameters[0].dtype, device=parameters[0].device)
