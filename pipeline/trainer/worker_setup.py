"""Setup of every worker before it reads: process groups, device, and the sharded model with its optimizers."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import ray.train
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.utils.deterministic
from ray.data import DataIterator
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.optim.keyed import KeyedOptimizer

from features.errors import DataError
from features.hashing import salt_of
from features.statistics import Statistics
from models.all_reduce import Ranks
from models.assembly import build_ranker
from models.ranker import Head
from models.tables import table_of
from pipeline.cluster.worker_lines import mark_own_lines
from pipeline.config.project import Config
from pipeline.lineage.stored_checkpoint import DamagedFile
from pipeline.trainer.optimizer import StepOptimizer
from pipeline.trainer.sharding import initialise_tables, shard_model, table_shardings
from pipeline.trainer.table_planner import device_load
from pipeline.trainer.train_state import TrainState

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def quiet_logs(rank: int) -> None:
    """Send the project's own lines to the command, on rank 0; of the other ranks and of libraries only warnings."""
    mark_own_lines()
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.DEBUG if rank == 0 else logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for chatty in ("torchrec", "fbgemm_gpu", "torch.fx", "ray.train", "torch.distributed"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Groups:
    """One process group per thread of control and purpose: two users of one group add each other's numbers up.

    Args:
        training: Group of gradients and embeddings.
        counts: Group of the small vector of every block of steps, on gloo.
        control: Group of cursors and reasons, on gloo; also of the training thread.
        saving: Group of checkpoints, on gloo, with a time-out of its own: of the thread that writes them, and before
            its start of the training thread, which restores one.
    """

    training: dist.ProcessGroup
    counts: dist.ProcessGroup
    control: dist.ProcessGroup
    saving: dist.ProcessGroup

    @classmethod
    @functools.lru_cache(maxsize=1)
    def of_process(cls, timeout_s: int, saving_timeout_s: int) -> "Groups":
        """Return the groups of this process: its jobs follow each other, and share them."""
        return cls.create(timeout_s, saving_timeout_s)

    @classmethod
    def create(cls, timeout_s: int, saving_timeout_s: int = 1800) -> "Groups":
        """Make the groups over all ranks; the default group is the training thread's."""
        assert dist.group.WORLD is not None
        timeouts = (timeout_s, timeout_s, saving_timeout_s)
        gloo: list[Any] = [dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) for seconds in timeouts]
        return cls(dist.group.WORLD, *gloo)

    def on_first(self, mine: Any, work: Callable[[list[Any]], Result]) -> Result | None:
        """Gather what every rank has to rank 0, and work on it there; over the control group, collective.

        Args:
            mine: This rank's share.
            work: Takes the shares by rank; called on rank 0.

        Returns:
            The result on rank 0; None on the others.

        Raises:
            Exception: On all ranks, what `work` raised.
        """
        is_first, result = dist.get_rank() == 0, None
        problem: list[Exception | None] = [None]
        gathered: list[Any] | None = [None] * dist.get_world_size() if is_first else None
        dist.gather_object(mine, gathered, dst=0, group=self.control)
        if gathered is not None:
            try:
                result = work(gathered)
            except DataError as error:
                problem = [DataError(str(error))]
            except Exception as error:  # noqa: BLE001 - the other ranks wait for it; a plain one surely travels
                problem = [RuntimeError(f"rank 0: {type(error).__name__}: {error}")]
        dist.broadcast_object_list(problem, src=0, group=self.control)
        if problem[0] is not None:
            raise problem[0]
        return result

    def gather(self, mine: Any) -> list[Any]:
        """Return every rank's value, by rank; over the control group, so from the training thread."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine, group=self.control)
        return gathered


def refuse_damage(worker: Callable[[Any, DataIterator], dict[str, Any]]) -> Callable[[Any, DataIterator], Any]:
    """Let a function of the workers return `refused` where the checkpoint that it loads is damaged.

    The checkpoint was named, and there is no other one to take; a retry would not help.
    """

    @functools.wraps(worker)
    def worker_or_refusal(job: Any, lane: DataIterator) -> dict[str, Any]:
        try:
            return worker(job, lane)
        except DamagedFile as error:  # on all ranks alike
            return {"refused": f"{error}: restore the file, or name another checkpoint"}

    return worker_or_refusal


def begin_worker(config: Config) -> tuple[Groups, torch.device]:
    """Set up a worker for a job: its log, its process groups, which are made once, and its device."""
    context = ray.train.get_context()
    quiet_logs(context.get_world_rank())
    groups = Groups.of_process(config.workers.timeout_s, config.checkpoint.timeout_s)
    return groups, set_device(config, context.get_local_rank())


def set_device(config: Config, local_rank: int) -> torch.device:
    """Choose this rank's device, and the precision of its matrix products.

    CUDA and NCCL are chosen by the config; they have not been run on the machines on which this was written.
    """
    torch.set_num_threads(config.workers.threads)
    pin_arithmetic(config.workers.deterministic)
    if config.workers.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = config.workers.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.workers.precision == "tf32"
    return device


def pin_arithmetic(deterministic: bool) -> None:
    """Let every kernel add in a fixed order, and fail if it has none; or choose the fastest."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory
    torch.backends.cudnn.benchmark = not deterministic


def seed_step(seed: int, step: int, rank: int) -> None:
    """Reseed the RNG for this step, so that dropout does not depend on restarts.

    `torch.manual_seed` would ask every kind of device on each step, which takes 200 times as long.
    """
    number = salt_of(f"{seed}/step/{step}/{rank}")
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)


def on_host(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors that steps have given, on the host; waits for those steps on a GPU.

    TorchRec asks for the next batch in a CUDA stream of its own. A copy that is begun there does not wait for the
    steps, which run in the default stream.
    """
    if not tensors[0].is_cuda:
        return torch.stack(list(tensors))
    with torch.cuda.stream(torch.cuda.default_stream(tensors[0].device)):
        return torch.stack(list(tensors)).cpu()


def build_state(
    config: Config,
    group: dist.ProcessGroup,
    device: torch.device,
    statistics: Statistics | None = None,
    *,
    draw: bool = True,
) -> TrainState:
    """Build and shard the model, with every parameter at its initial value; collective.

    Initial values depend on the seed alone, not on the number of ranks.

    Args:
        config: The project's configuration.
        group: Process group of the training thread.
        device: Device of this rank.
        statistics: Statistics of the line, by which the planner of a GPU's tables expects ids.
        draw: False where a checkpoint is loaded next: the rows of the tables are not drawn before.
    """
    torch.manual_seed(config.seed)
    autocast = torch.bfloat16 if config.workers.precision == "bfloat16" else None
    ranks = Ranks(group.size(), lambda tensor: differentiable.all_reduce(tensor, group=group))
    declared = config.model
    network, towers, dropout = declared.network, declared.towers, declared.dropout
    model = build_ranker(config.log_schema, network, towers, dropout, autocast, config.joint_loss, ranks, declared)
    load = device_load(config.log_schema, statistics, config.ingest.batch_size, device)
    sharded = shard_model(model, config.log_schema, config.sharding, config.optimizer.tables, group, device, load)
    if draw:
        initialise_tables(sharded, config.log_schema, config.seed)
    logger.debug("tables: %s", table_shardings(sharded))
    return TrainState(sharded, build_optimizer(config, sharded, group), config.seed)


def build_optimizer(config: Config, sharded: DistributedModelParallel, group: dist.ProcessGroup) -> StepOptimizer:
    """Return the optimizers of a sharded model."""
    parameters = dict(sharded.named_parameters())
    tables = {name for name in parameters if table_of(name) is not None}
    replicated_tables = {name for name, kind in config.sharding.tables.items() if kind == "data_parallel"}
    replicated = {name: parameters[name] for name in tables if table_of(name) in replicated_tables}
    dense = {name: parameter for name, parameter in parameters.items() if name not in tables}
    tables_optimizer = cast(KeyedOptimizer, sharded.fused_optimizer)
    return StepOptimizer(config.optimizer, tables_optimizer, dense, replicated, group, _rate_factors(sharded, dense))


def _rate_factors(sharded: DistributedModelParallel, dense: dict[str, nn.Parameter]) -> dict[str, float]:
    """Return the network's rate factors, by the names of its parameters in the whole model."""
    (network,) = (module.network for module in sharded.modules() if isinstance(module, Head))
    names = {id(parameter): name for name, parameter in dense.items()}
    return {names[id(network.get_parameter(name))]: factor for name, factor in network.rate_factors().items()}


def build_train_pipeline(config: Config, state: TrainState, device: torch.device) -> TrainPipelineBase:
    """Return TorchRec's train pipeline of the config; both kinds give the same bits."""
    if config.sharding.train_pipeline == "base":
        return TrainPipelineBase(state.model, state.optimizer, device)  # pyright: ignore[reportArgumentType]
    return TrainPipelineSparseDist(  # pyright: ignore[reportReturnType]
        state.model,
        state.optimizer,  # pyright: ignore[reportArgumentType]
        device,
        execute_all_batches=True,
    )
