"""Comparison of the meaning of a checkpoint's tensors with the configuration."""

import json
from typing import Any

from pydantic import ValidationError

from features.errors import DataError
from pipeline.config.project import Config, ModelConfig
from pipeline.lineage.records import Manifest


def check_same_schema(config: Config, manifest: Manifest) -> None:
    """Refuse to load a checkpoint with tensors of another meaning.

    Raises:
        DataError: Names the table or another difference, and the remedy.
    """
    held, holds = manifest.config.get("holdout"), config.holdout
    if held is not None and holds is not None and held != holds.model_dump(mode="json"):
        raise DataError(
            f"checkpoint {manifest.checkpoint} was trained with another holdout ({held}): rows that are held out now "
            "have been trained: restore it, leave the section out, or begin a new line"
        )
    if not _same_model(manifest.config["model"], config.model):
        raise DataError(
            f"checkpoint {manifest.checkpoint} was trained with another model section: restore the old config, or take "
            "it to the new one with jobs.migrate"
        )
    then = manifest.config.get("loss_balancing", {"kind": "schedule"})["kind"]  # older ones have no other
    if then != config.loss_balancing.kind:
        raise DataError(
            f"checkpoint {manifest.checkpoint} was trained with loss_balancing {then}, the config has "
            f"{config.loss_balancing.kind}: restore the old config, or take it to the new one with jobs.migrate"
        )
    for part in ("tables", "dense"):
        old, new = manifest.config["optimizer"][part]["kind"], getattr(config.optimizer, part).kind
        if old != new:
            raise DataError(
                f"checkpoint {manifest.checkpoint} was trained with optimizer.{part}.kind {old}, the config has {new}: "
                "restore the old config or start a new root"
            )
    if manifest.schema_fingerprint == config.log_schema.fingerprint():
        return
    then = manifest.config["schema"]
    now = config.log_schema.model_dump(mode="json")
    found = {table["name"]: table for table in then["tables"]}
    for table in now["tables"]:
        old = found.get(table["name"])
        for key, what in (("num_rows", "rows"), ("dim", "columns")):
            grows = key == "num_rows" and table["name"] in config.log_schema.vocabularies
            if old is not None and old[key] != table[key] and not grows:
                raise DataError(
                    f"checkpoint {manifest.checkpoint} has table {table['name']} with {old[key]:,} {what}, the config "
                    f"declares {table[key]:,}: restore the old config, or take it to the new one with jobs.migrate"
                )
    changed = [key for key in now if then.get(key) != now[key]]
    raise DataError(
        f"checkpoint {manifest.checkpoint} was trained with other {', '.join(changed)} in its schema: restore the old "
        "config, or take it to the new one with jobs.migrate"
    )


def _same_model(then: dict[str, Any], now: ModelConfig) -> bool:
    """Return True if two model sections mean the same; keys added since have their defaults in the old one."""
    try:
        return ModelConfig.model_validate_json(json.dumps(then)).meaning() == now.meaning()
    except ValidationError:
        return False
