"""Metrics of slices, within groups and of sampled rows: against plain references, on one rank and on several."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import ndcg_score, roc_auc_score

from features.errors import DataError
from features.measured_columns import MeasuredColumns, SliceConfig, text_hash
from features.tasks import TaskConfig
from pipeline.config.evaluation import GroupedConfig
from pipeline.evaluation import group_rows, row_sample
from pipeline.evaluation.auc import AucSketch
from pipeline.evaluation.calibration_curve import calibration_curve
from pipeline.evaluation.group_rows import GroupRows
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.row_sample import RowSample, row_hashes, sampled_figures, xauc
from pipeline.evaluation.slice_metrics import SliceMetrics
from pipeline.ingest.cursor import BatchCursor, Span

CTR, RATING, VCR, SHR = (
    TaskConfig(name="ctr", label="click"),
    TaskConfig(name="rating", label="stars", kind="multiclass", num_classes=3),
    TaskConfig(name="vcr", label="share", kind="regression"),
    TaskConfig(name="shr", label="shared", space="played == 1"),
)
TASKS = [CTR, RATING, VCR, SHR]
NUM_ROWS, BATCH = 3000, 256
TABS = SliceConfig(name="tab")
RANGES = SliceConfig(name="length", boundaries=[10.0, 30.0])


def rows() -> dict[str, torch.Tensor]:
    """Rows of 200 groups with ties among the scores; a tenth has no group, garbage stands outside the space."""
    random = torch.Generator().manual_seed(3)
    scores = torch.randint(-8, 8, (NUM_ROWS,), generator=random) / 4
    labels = (scores + torch.randn(NUM_ROWS, generator=random) > 0.5).float()
    in_space = torch.rand(NUM_ROWS, generator=random) < 0.8
    labels[~in_space] = float("nan")
    groups = torch.randint(0, 200, (NUM_ROWS,), generator=random) * 7919
    groups[torch.rand(NUM_ROWS, generator=random) < 0.1] = 0
    weight = torch.randint(1, 4, (NUM_ROWS,), generator=random).float()
    tabs = torch.randint(0, 3, (NUM_ROWS,), generator=random)
    return {
        "scores": scores, "labels": labels, "in_space": in_space, "groups": groups, "weight": weight, "tabs": tabs
    }  # fmt: skip


@dataclass(frozen=True)
class Grouped:
    """Grouped metrics of a rank's batches."""

    partition_rows: int

    def __call__(self, rank: int, num_ranks: int) -> Any:
        found = GroupRows(GroupedConfig(by="u", at=[1, 5]), TASKS, NUM_ROWS, num_ranks, self.partition_rows)
        for start in range(rank * BATCH, NUM_ROWS, num_ranks * BATCH):
            part = {name: tensor[start : start + BATCH] for name, tensor in rows().items()}
            spaces = [part["in_space"]] * 3 + [part["in_space"] & (part["tabs"] == 0)]
            batch = SimpleNamespace(
                groups=part["groups"],
                in_space=torch.stack(spaces, dim=1),
                labels=part["labels"].nan_to_num(0)[:, None].expand(-1, 4),
                weight=part["weight"][:, None].expand(-1, 4),
            )
            scores, classes = part["scores"], torch.zeros(len(part["scores"]), 3)
            found.update(batch, [scores, classes, scores, scores])  # type: ignore[arg-type]
        assert dist.group.WORLD is not None
        return found.results(dist.group.WORLD)


def expected_groups(tabs: tuple[int, ...] = (0, 1, 2)) -> dict[str, float]:
    """GAUC and NDCG by scikit-learn, group by group, of the rows of some tabs."""
    found = {name: tensor.numpy() for name, tensor in rows().items()}
    kept = found["in_space"] & (found["groups"] != 0) & np.isin(found["tabs"], tabs)
    auc, weight, ndcg, one_class = [], [], [], 0
    for group in np.unique(found["groups"][kept]):
        chosen = kept & (found["groups"] == group)
        label, score, weights = (found[name][chosen] for name in ("labels", "scores", "weight"))
        if 0 < label.sum() < len(label):
            auc.append(roc_auc_score(label, score, sample_weight=weights))
            weight.append(weights.sum())
        else:
            one_class += 1
        if label.sum() and len(label) > 1:
            ndcg.append(ndcg_score(label[None], score[None], k=5))
        elif label.sum():
            ndcg.append(1.0)
    return {
        "gauc": float(np.average(auc, weights=weight)),
        "ndcg@5": float(np.mean(ndcg)),
        "gauc_groups": len(auc),
        "one_class_groups": one_class,
    }


@pytest.mark.parametrize("partition_rows", [100, 10**6])
def test_groups_on_any_number_of_ranks(run_ranks: Any, partition_rows: int) -> None:
    """Catches a group whose rows stay on several ranks or partitions, rows outside the space, rows without a group."""
    expected, of_a_tab = expected_groups(), expected_groups((0,))
    for num_ranks in (1, 2):
        for ctr, rating, vcr, shr in run_ranks(Grouped(partition_rows), num_ranks):
            assert rating == vcr == {}
            for name, value in expected.items():
                assert ctr[name] == pytest.approx(value, abs=1e-9), name
                assert shr[name] == pytest.approx(of_a_tab[name], abs=1e-9), name


def test_rows_written_in_pieces(run_ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches pieces of the rank's file that are read at another's place."""
    (whole,) = run_ranks(Grouped(100), 1)
    found = GroupRows(GroupedConfig(by="u"), [CTR], NUM_ROWS, 1, 100)
    monkeypatch.setattr(group_rows, "_ROWS_AT_ONCE", 300)
    kept = rows()
    for start in range(0, NUM_ROWS, BATCH):
        part = {name: tensor[start : start + BATCH] for name, tensor in kept.items()}
        batch = SimpleNamespace(
            **{name: part[name][:, None] for name in ("in_space", "labels", "weight")}, groups=part["groups"]
        )
        found.update(batch, [part["scores"]])  # type: ignore[arg-type]
    found._write()
    assert len(found._pieces) > 3
    read = np.concatenate([found._read(number) for number in range(found._num_partitions)])
    chosen = kept["in_space"] & (kept["groups"] != 0)
    assert sorted(read["group"].tolist()) == sorted(kept["groups"][chosen].tolist())
    assert read["weight"].sum() == kept["weight"][chosen].sum()
    assert whole[0]["gauc_groups"] == expected_groups()["gauc_groups"]


@dataclass(frozen=True)
class Sliced:
    """Metrics by tab of a rank's batches."""

    max_slices: int = 3
    apart: bool = False

    def __call__(self, rank: int, num_ranks: int) -> Any:
        found = SliceMetrics([TABS], [CTR, VCR], self.max_slices)
        kept = rows()
        for start in range(rank * BATCH, NUM_ROWS, num_ranks * BATCH):
            part = {name: tensor[start : start + BATCH] for name, tensor in kept.items()}
            texts = [f"of rank {rank}", "feed"] if self.apart else ["home", "feed", "10"][: 2 if rank else 3]
            found.name([np.frombuffer(f'[["{text}"]]'.encode(), np.uint8) for text in texts])
            slices = torch.from_numpy(text_hash(["home", "feed", "10"]))[part["tabs"]][:, None]
            known = (part["scores"].sigmoid(), part["scores"], part["labels"], part["weight"])
            for task in range(2):
                found.update(task, slices, part["in_space"], *known)
        assert dist.group.WORLD is not None
        try:
            return found.results(dist.group.WORLD)
        except DataError as error:
            return str(error)


def test_slices_on_any_number_of_ranks(run_ranks: Any) -> None:
    """Catches a slice with another's rows or without a rank's, and one whose name only one rank has met."""
    kept = {name: tensor.numpy() for name, tensor in rows().items()}
    for num_ranks in (1, 2):
        for ctr, vcr in run_ranks(Sliced(), num_ranks):
            assert [one["value"] for one in ctr["tab"]] == ["10", "feed", "home"]
            for one, other, tab in zip(ctr["tab"], vcr["tab"], (2, 1, 0), strict=True):
                chosen = kept["in_space"] & (kept["tabs"] == tab)
                label, score, weight = (kept[name][chosen] for name in ("labels", "scores", "weight"))
                assert one["rows"] == other["rows"] == chosen.sum()
                assert one["positives"] == label.sum()
                assert one["auc"] == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-9)
                prediction = 1 / (1 + np.exp(-score.astype(np.float64)))
                assert other["mse"] == pytest.approx(np.average((prediction - label) ** 2, weights=weight), abs=1e-6)


def test_too_many_values(run_ranks: Any) -> None:
    """Catches a column of a million values that fills the memory, and too many on all ranks where none has too many."""
    found = SliceMetrics([TABS], [CTR], 3)
    with pytest.raises(DataError, match=r"evaluation.by: 'tab' has 4 values or more, evaluation.max_slices is 3"):
        found.name([np.frombuffer(b'[["a", "b", "c", "d"]]', np.uint8)])
    for said in run_ranks(Sliced(2, apart=True), 2):
        assert "'tab' has 3 values or more" in said


def test_values_are_in_the_order_of_numbers() -> None:
    """Catches ranges sorted as texts: 100 before 20, and what is unknown among them."""
    import pyarrow as pa

    from pipeline.evaluation.slice_metrics import _place

    wide = SliceConfig(name="length", boundaries=[5.0, 20.0, 100.0])
    texts = wide.texts({"length": pa.array([None, 200.0, 3.0, 50.0, 7.0, float("nan")])}).to_pylist()
    assert texts == ["null", ">= 100", "< 5", "20 to 100", "5 to 20", "null"]
    assert sorted(set(texts), key=lambda text: _place(wide, text)) == ["< 5", "5 to 20", "20 to 100", ">= 100", "null"]
    for texts in (["nan", "3", "null", "1", "feed"], ["feed", "1", "null", "3", "nan"]):  # ranks meet them in any order
        assert sorted(texts, key=lambda text: _place(TABS, text)) == ["1", "3", "feed", "nan", "null"]
    hours = SliceConfig(name="at", boundaries=[1700000000.0, 1700003600.0, 1700007200.0])
    assert len(set(hours.texts({"at": pa.array([1.0, 1700000001.0, 1700003601.0, 1700007201.0])}).to_pylist())) == 4


def plain_xauc(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float | None:
    """XAUC pair by pair."""
    right = np.sign(labels[:, None] - labels) * np.sign(predictions[:, None] - predictions)
    pairs = (labels[:, None] > labels) * weights[:, None] * weights
    return float((pairs * (right + 1) / 2).sum() / pairs.sum()) if pairs.sum() else None


def test_xauc_equals_a_loop_over_pairs() -> None:
    """Catches ties of labels that count as pairs, ties of predictions that count whole, and weights left out."""
    random = np.random.default_rng(0)
    for num_rows in (0, 1, 2, 7, 64, 65, 300):
        for _ in range(20):
            predictions, labels = random.integers(0, 9, num_rows) / 4, random.integers(0, 5, num_rows) * 1.5
            weights = random.integers(0, 3, num_rows).astype(float)
            found, expected = xauc(predictions, labels, weights), plain_xauc(predictions, labels, weights)
            assert found == expected or found == pytest.approx(expected, abs=1e-9)
    binary = random.integers(0, 2, 500)
    scores = random.random(500).round(1)
    assert xauc(scores, binary.astype(float), np.ones(500)) == pytest.approx(roc_auc_score(binary, scores), abs=1e-12)


@dataclass(frozen=True)
class Sampled:
    """Sample of a rank's batches."""

    size: int

    def __call__(self, rank: int, num_ranks: int) -> np.ndarray:
        sample = RowSample(self.size)
        for start in range(rank * BATCH, NUM_ROWS, num_ranks * BATCH):
            numbers = np.arange(start, min(start + BATCH, NUM_ROWS), dtype=np.int32)
            cursor = BatchCursor(0, (Span(0, 99, numbers),), np.zeros(1), 0, {})
            values = torch.from_numpy(numbers.astype(np.float32))
            sample.update(row_hashes(cursor, len(numbers)), values, -values, torch.ones(len(numbers)))
        assert dist.group.WORLD is not None
        return sample.of_all_ranks(dist.group.WORLD)


def test_a_sample_is_the_same_on_any_number_of_ranks(run_ranks: Any) -> None:
    """Catches a sample that depends on ranks or order, one of more rows than asked for, and values that lose theirs."""
    (whole,) = run_ranks(Sampled(NUM_ROWS), 1)
    assert sorted(whole[0].tolist()) == list(range(NUM_ROWS))
    (alone,) = run_ranks(Sampled(500), 1)
    assert 450 < alone.shape[1] <= 500
    assert (alone[1] == -alone[0]).all()
    for found in run_ranks(Sampled(500), 2):
        np.testing.assert_array_equal(found, alone)
    assert sampled_figures(whole)[0] == 0.0
    assert row_sample.SAMPLE_ROWS == 65536  # docs/evaluation.md


def test_a_sample_of_many_rows(run_ranks: Any) -> None:
    """Catches a sample that is empty since its first bucket of hashes alone has more rows than it may have."""
    (found,) = run_ranks(Crowded(), 1)
    assert found.shape == (3, 500)


@dataclass(frozen=True)
class Crowded:
    """Sample of rows whose hashes have the same highest bits."""

    def __call__(self, rank: int, num_ranks: int) -> np.ndarray:
        sample = RowSample(500)
        values = torch.arange(2000.0)
        sample.update(np.arange(2000, dtype=np.uint64) << np.uint64(20), values, values, values)
        sample._shrink = lambda: (sample._hashes[0], sample._rows[0])  # type: ignore[method-assign]  # as of many ranks
        assert dist.group.WORLD is not None
        return sample.of_all_ranks(dist.group.WORLD)


def test_refused_types_of_columns() -> None:
    """Catches a column that every unit stumbles over, where a file's own schema says so before anything is read."""
    import pyarrow as pa

    log = pa.schema([("scene", pa.string()), ("user", pa.float64()), ("tags", pa.list_(pa.int64()))])
    MeasuredColumns(groups="scene", slices=(SliceConfig(name="scene"), SliceConfig(name="user"))).check(log)
    for measured, said in (
        (MeasuredColumns(groups="request"), "no column 'request', which evaluation.by or evaluation.grouped reads"),
        (MeasuredColumns(groups="user"), "column 'user' is double, users and requests"),
        (MeasuredColumns(slices=(SliceConfig(name="tags"),)), "slices by 'tags': the value is list"),
        (MeasuredColumns(slices=(SliceConfig(name="scene", boundaries=[1.0]),)), "boundaries need a number"),
    ):
        with pytest.raises(DataError, match=said):
            measured.check(log)


def test_calibration_curve_by_hand() -> None:
    """Catches bins of equal width, equal predictions that are torn apart, and weights left out."""
    predictions, labels = np.array([0.1, 0.2, 0.2, 0.9]), np.array([0.0, 1.0, 0.0, 1.0])
    found = calibration_curve(predictions, labels, np.array([1.0, 1.0, 1.0, 3.0]), num_bins=2)
    assert [point["rows"] for point in found] == [3.0, 3.0]
    assert [point["mean_label"] for point in found] == pytest.approx([1 / 3, 1.0])
    assert [point["mean_prediction"] for point in found] == pytest.approx([0.5 / 3, 0.9])
    assert calibration_curve(np.empty(0), np.empty(0), np.empty(0)) == []


def test_the_curve_of_a_sketch_is_that_of_its_rows() -> None:
    """Catches scores that do not come back out of the sketch, negative ones and zero among them."""
    random = torch.Generator().manual_seed(1)
    scores = torch.cat([torch.randn(999, generator=random) * 3, torch.tensor([0.0, -0.0, 30.0, -30.0])])
    labels = (torch.rand(len(scores), generator=random) < scores.sigmoid()).float()
    weight = torch.randint(1, 5, (len(scores),), generator=random).float()
    metrics = TaskMetrics(CTR)
    metrics.update(scores.sigmoid(), scores, labels, torch.ones(len(scores), dtype=torch.bool), weight)
    expected = calibration_curve(scores.double().sigmoid().numpy(), labels.double().numpy(), weight.double().numpy())
    found = metrics.calibration_curve()
    assert len(found) == len(expected) == 20
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    coarse = AucSketch(64)
    coarse.update(scores, labels, weight)
    middles, weights = coarse.bins()
    assert np.average(torch.from_numpy(middles).sigmoid().numpy(), weights=weights.sum(0)) == pytest.approx(
        float((scores.sigmoid() * weight).sum() / weight.sum()), abs=0.02
    )
