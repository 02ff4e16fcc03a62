"""A table that grows from its checkpoint, on any ranks; a vocabulary's file in it, which is checked as tensors are."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from records import manifest_of
from table_changes import GrownLoad
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from train_steps import NUM_STEPS, Run, assert_tables_moved, make_config, whole

from features.errors import DataError
from features.vocabulary import Vocabulary
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.table_growth import GrowthLoadPlanner
from pipeline.checkpoint.write import write_checkpoint
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.log_passes.admission import read_vocabularies, vocabulary_files
from pipeline.storage.files import Storage

FIRST = range(NUM_STEPS // 2)
MAPPING = {"kind": "vocabulary", "min_count": 1, "keep_days": 1, "tail_rows": 5}


def grown_config(sharding: Any, num_rows: int = 50, dim: int = 8, **optimizers: Any) -> Config:
    """The config of the train step, with a vocabulary for the table of videos."""
    content = make_config(sharding, **optimizers).model_dump(mode="json", by_alias=True)
    content["schema"]["tables"][1] |= {"num_rows": num_rows, "dim": dim, "id_mapping": MAPPING}
    return parse_config(content, "test")


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize(
    ("here", "there", "tables"),
    [
        ("row_wise", "row_wise", "rowwise_adagrad"),
        ("row_wise", "table_wise", "rowwise_adagrad"),
        ("table_wise", "row_wise", "rowwise_adagrad"),
        ("row_wise", "data_parallel", "rowwise_adagrad"),
        ("row_wise", "row_wise", "adagrad"),
    ],
)
def test_a_table_grows(run_ranks: Any, tmp_path: Path, here: str, there: str, tables: str, num_ranks: int) -> None:
    """Catches ids that lose their weights or accumulators, or have those of others, when the table grows; and rows
    that do not start as new ones, or whose accumulators do not.
    """
    saved = run_ranks(Run(grown_config(here, tables=tables), steps=FIRST, save=str(tmp_path)), 2)
    assert_tables_moved(saved)
    loaded = run_ranks(GrownLoad(grown_config(there, 77, tables=tables), str(tmp_path)), num_ranks)
    then, fresh, now = whole(saved, "after"), whole(loaded, "before"), whole(loaded, "after")
    assert set(then) == set(now)
    for name, tensor in now.items():
        rows = 50 if "embedding_bags.video" in name else len(tensor) if tensor.dim() else None
        assert torch.equal(tensor[:rows] if rows else tensor, then[name])
        if rows == 50:
            assert len(tensor) == 77
            expected = fresh[name][50:] if name.startswith("model:") else torch.zeros_like(tensor[50:])
            assert torch.equal(tensor[50:], expected)


def _refusal(run_ranks: Any, load: GrownLoad) -> str:
    said = {result["refused"] for result in run_ranks(load, 2)}
    assert len(said) == 1, "the ranks disagree"
    return said.pop()


def test_what_may_not_be_loaded(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a table that shrinks or grows unasked, and is loaded in part."""
    run_ranks(Run(grown_config("row_wise"), steps=FIRST, save=str(tmp_path)), 2)
    smaller = _refusal(run_ranks, GrownLoad(grown_config("row_wise", 49), str(tmp_path)))
    assert smaller.startswith("DataError")
    assert "table 'video' was saved with 50 rows, the config declares 49: it can grow, not shrink" in smaller
    content = grown_config("row_wise", 51).model_dump(mode="json", by_alias=True)
    content["schema"]["tables"][1]["id_mapping"] = {"kind": "hashing"}
    hashed = parse_config(content, "test")
    for load in (
        GrownLoad(grown_config("row_wise", 51), str(tmp_path), growing=False),
        GrownLoad(hashed, str(tmp_path)),
    ):
        found = _refusal(run_ranks, load)
        assert found.startswith("RuntimeError")
        assert "Size mismatch" in found


@pytest.mark.parametrize(("dim", "other"), [(8, "video"), (12, "video"), (8, "user")])
def test_only_rows_may_have_grown(dim: int, other: str) -> None:
    """Catches a table of another width, of which the first columns would be loaded, and another table that grew."""
    name, saved = f"model.embedding_bags.{other}.weight", torch.zeros(50, 8)
    properties = TensorProperties.create_from_tensor(saved)
    chunks = [ChunkStorageMetadata(torch.Size([0, 0]), saved.size())]
    planner = GrowthLoadPlanner({"video": 51})
    metadata = Metadata({name: TensorStorageMetadata(properties, saved.size(), chunks)})
    planner.set_up_planner({name: torch.zeros(51, dim)}, metadata)
    if (dim, other) == (8, "video"):
        assert [item.lengths for item in planner.create_local_plan().items] == [torch.Size([50, 8])]
        return
    with pytest.raises(ValueError, match="Size mismatch"):
        planner.create_local_plan()


# --- The vocabulary's file ---


def _vocabulary(config: Config) -> Vocabulary:
    keys = np.arange(40, dtype=np.uint64) << np.uint64(50)
    mapping = config.log_schema.vocabularies["video"]
    start = Vocabulary.empty(config.log_schema.tables[1])
    return start.update(mapping, "2026-03-01", start.seen(mapping, keys, np.ones(40, int))).vocabulary


def _save(rank: int, num_ranks: int, root: str, config: Config, background: bool) -> None:
    line = Line.of(root, "main")
    manifest = manifest_of(step=1, day="2026-03-01", complete=True)
    saver = Saver(line, CheckpointConfig(background=background), dist.new_group(backend="gloo"))
    saver.save(
        {"model": {"weight": torch.ones(9)}},
        "checkpoints/2026-03-01/0001/1",
        manifest if rank == 0 else None,
        vocabulary_files({"video": _vocabulary(config)}),
    )
    saver.wait()


@pytest.mark.parametrize("background", [False, True])
def test_a_vocabulary_is_in_the_checkpoint(run_ranks: Any, tmp_path: Path, background: bool) -> None:
    """Catches a file that is missing, is not in the manifest, or may be damaged without anybody's noticing."""
    config, larger = grown_config("row_wise"), grown_config("row_wise", 60)
    line = Line.of(str(tmp_path), "main")
    line.begin_attempt(["2026-03-01"], "a", lambda: None)
    run_ranks(partial(_save, root=str(tmp_path), config=config, background=background), 2)
    newest = line.newest()
    assert newest is not None
    read = read_vocabularies(line.storage, newest.checkpoint, config.log_schema)["video"]
    assert read.to_arrow() == _vocabulary(config).to_arrow()
    grown = read_vocabularies(line.storage, newest.checkpoint, larger.log_schema)["video"]
    assert grown.to_arrow() == read.grown(60).to_arrow()
    assert read_vocabularies(line.storage, newest.checkpoint, make_config().log_schema) == {}
    with pytest.raises(DataError, match=r"vocabulary-video\.arrow: .*|can grow, not shrink"):
        read_vocabularies(line.storage, newest.checkpoint, grown_config("row_wise", 49).log_schema)
    file = Path(line.storage.path(f"{newest.checkpoint}/vocabulary-video.arrow"))
    data = file.read_bytes()
    file.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    assert "vocabulary-video.arrow" in (line.damage(newest) or "")
    with pytest.raises(DataError, match=r"vocabulary-video\.arrow: a vocabulary's Arrow file is damaged"):
        read_vocabularies(line.storage, newest.checkpoint, config.log_schema)
    file.unlink()
    assert line.damage(newest) == "vocabulary-video.arrow is missing"
    with pytest.raises(DataError, match=r"vocabulary-video\.arrow is missing: restore"):
        read_vocabularies(line.storage, newest.checkpoint, config.log_schema)


def test_another_table_s_file_is_refused(tmp_path: Path) -> None:
    """Catches a vocabulary whose tail has another size than the table's, so that ids share rows with it."""
    storage, config = Storage(str(tmp_path)), grown_config("row_wise")
    (data,) = vocabulary_files({"video": _vocabulary(config)}).values()
    storage.write("checkpoint/vocabulary-video.arrow", data)
    content = config.model_dump(mode="json", by_alias=True)
    content["schema"]["tables"][1]["id_mapping"]["tail_rows"] = 6
    with pytest.raises(DataError, match="is of table 'video' with 5 tail_rows, the config has 'video' with 6"):
        read_vocabularies(storage, "checkpoint", parse_config(content, "test").log_schema)


def test_a_file_that_cannot_be_written_completes_nothing(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a manifest that is written although a file which it names is not there."""
    for said in run_ranks(partial(_write_into_a_folder, root=str(tmp_path)), 2):
        assert "was not completed" in said
    assert not (tmp_path / "checkpoint/manifest.json").exists()


def _write_into_a_folder(rank: int, num_ranks: int, root: str) -> str:
    storage, tensors = Storage(root), {"model": {"weight": torch.ones(9)}}
    try:
        files = {"missing/../..": b"x"}
        write_checkpoint(
            tensors, storage, "checkpoint", manifest_of() if rank == 0 else None, dist.group.WORLD, extra_files=files
        )
    except RuntimeError as error:
        return str(error)
    return ""
