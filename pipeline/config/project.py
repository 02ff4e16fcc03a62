"""Whole configuration of a project, from one YAML file; a wrong key fails before a cluster is requested."""

from typing import Any

from pydantic import Field, model_validator

from features.declaration import Declaration
from features.holdout import HoldoutConfig
from features.schema import Schema
from models.balancing import SCHEDULE, LossBalancingConfig
from models.kl_bound import KLBoundConfig
from models.loss import LossWeightConfig
from models.loss_combination import JointLoss
from models.network import NetworkConfig
from models.optional_parts import AroundConfig
from models.ranking_score import RankingConfig
from models.sizes import Width
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.daily import DailyConfig
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.ingest import IngestConfig
from pipeline.config.optimizer import OptimizerConfig
from pipeline.config.predictions import PredictionsConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.config.tracking import TENSORBOARD, TrackingConfig
from pipeline.config.workers import RayConfig, WorkersConfig

ON_CUDA: dict[str, dict[str, Any]] = {
    "workers": {"precision": "tf32", "deterministic": False},
    "ingest": {"batch_size": 4096, "lookahead": 4},
    "checkpoint": {"writer_threads": 4},
}
"""Defaults with `workers.device: cuda` that differ from those of a CPU, by section."""

LINE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"


class ModelConfig(AroundConfig):
    """The dense part of the model.

    Args:
        entire_space: Tasks whose probabilities are composed of the outputs of several towers, as in ESMM and ESM2;
            absent: each task has its own tower.
        slot_bias: A logit of the slot, added to the tasks' logits in training; absent: none.
        interaction: Products of every two sparse features' embeddings, before the network; absent: none.
        user: The user tower, computed once per user and scored against many items, as in DUPN; absent: none.
        network: The multi-task network over pooled embeddings and dense values.
        towers: Widths of the hidden layers of every task's tower.
        dropout: Dropout probability within the towers, in training.
    """

    network: NetworkConfig
    towers: list[Width] = Field(default=[64])
    dropout: float = Field(default=0.0, ge=0, lt=1)


class LogsConfig(Declaration):
    """Location of the logs.

    Args:
        path: A directory or s3:// prefix with folders `dt=YYYY-MM-DD` of Parquet files.
    """

    path: str


class Config(Declaration):
    """A project.

    Args:
        name: Name of the project in reports.
        root: Directory or s3:// prefix for checkpoints, ledger and reports.
        line: The chain of days to train.
        seed: Seed of all randomness.
        logs: Location of the logs.
        log_schema: Declared meaning of a log line; the key in the file is `schema`.
        model: The dense part of the model.
        loss_weights: w_k(t) of each task.
        loss_balancing: Balancing of the tasks' losses beyond w_k(t).
        kl_bounds: Terms that tie p(click) p(convert) to p(order).
        optimizer: Optimizers of tables and dense part.
        sharding: Sharding of tables over the workers.
        ingest: Reading of the log.
        holdout: Rows that are never trained; absent: none.
        checkpoint: Schedule and retention of checkpoints.
        evaluation: Baselines and intervals of evaluations.
        predictions: Columns of predictions.
        daily: The daily job.
        ranking: The score by which `jobs.score` ranks; absent: none.
        tracking: Live view of runs.
        workers: The workers that train.
        ray: The Ray of the commands.
    """

    name: str
    root: str
    line: str = Field(default="main", pattern=LINE_NAME)
    seed: int = Field(default=0, ge=0)
    logs: LogsConfig
    log_schema: Schema = Field(alias="schema")
    model: ModelConfig
    loss_weights: LossWeightConfig = LossWeightConfig()
    loss_balancing: LossBalancingConfig = SCHEDULE
    kl_bounds: list[KLBoundConfig] = []
    optimizer: OptimizerConfig
    sharding: ShardingConfig = ShardingConfig()
    ingest: IngestConfig = IngestConfig()
    holdout: HoldoutConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    predictions: PredictionsConfig = PredictionsConfig()
    daily: DailyConfig = DailyConfig()
    ranking: RankingConfig | None = None
    tracking: TrackingConfig = TENSORBOARD
    workers: WorkersConfig = WorkersConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_the_device(cls, data: Any) -> Any:
        workers = data.get("workers") if isinstance(data, dict) else None
        if not isinstance(workers, dict) or workers.get("device") != "cuda":
            return data
        given = {name: data.get(name, {}) for name in ON_CUDA}
        return data | {name: ON_CUDA[name] | own for name, own in given.items() if isinstance(own, dict)}

    @property
    def joint_loss(self) -> JointLoss:
        """Combination of the tasks' losses, beyond w_k(t)."""
        return JointLoss(balancing=self.loss_balancing, bounds=self.kl_bounds)
