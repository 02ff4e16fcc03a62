"""Train the PLE of a peer library on arrays in memory; a script, run by the interpreter of the peers' own environment.

`python benchmarks/peers.py LIBRARY FOLDER` reads `train.npz`, `valid.npz` and `sizes.json` from the folder, and prints
one line of JSON. It imports nothing of this project.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def main(library: str, folder: Path) -> None:
    """Train once, and print rows per second and the AUC of each task on the validation rows."""
    sizes = json.loads((folder / "sizes.json").read_text())
    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(1)
    train, valid = (_columns(dict(np.load(folder / f"{name}.npz"))) for name in ("train", "valid"))
    labels = [np.load(folder / f"{name}.npz")["labels"] for name in ("train", "valid")]
    build = {"torch_rechub": _rechub, "deepctr_torch": _deepctr}[library]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fit, predict, model = build(sizes, train, labels[0])
        began = time.perf_counter()
        fit()
        torch.save(model.state_dict(), folder / f"{library}.pt")
        seconds = time.perf_counter() - began
        scores = predict(valid)
    from sklearn.metrics import roc_auc_score

    auc = [float(roc_auc_score(labels[1][:, task], scores[:, task])) for task in range(labels[1].shape[1])]
    print(json.dumps({"rows_per_s": len(labels[0]) / seconds, "auc": auc}))  # noqa: T201 - the script's result


def _columns(arrays: Arrays) -> Arrays:
    return {name: arrays[name] for name in ("user_id", "video_id", "watched", "dense")}


def _rechub(sizes: dict[str, Any], train: Arrays, labels: np.ndarray) -> tuple[Callable, Callable, torch.nn.Module]:
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature  # pyright: ignore[reportMissingImports]
    from torch_rechub.models.multi_task import PLE  # pyright: ignore[reportMissingImports]
    from torch_rechub.trainers import MTLTrainer  # pyright: ignore[reportMissingImports]
    from torch_rechub.utils.data import DataGenerator  # pyright: ignore[reportMissingImports]

    dim, batch = sizes["dim"], sizes["batch"]
    features = [
        SparseFeature("user_id", sizes["users"] + 1, dim),
        SparseFeature("video_id", sizes["videos"] + 1, dim),
        SequenceFeature("watched", sizes["videos"] + 1, dim, pooling="mean", shared_with="video_id", padding_idx=0),
        DenseFeature("dense", train["dense"].shape[1]),
    ]
    kinds = ["classification"] * labels.shape[1]
    tower = {"dims": [sizes["tower"]]}
    model = PLE(features, kinds, sizes["levels"], sizes["own"], sizes["shared"], {"dims": [sizes["width"]]},
                [tower] * len(kinds))  # fmt: skip
    trainer = MTLTrainer(model, kinds, optimizer_params={"lr": sizes["rate"]}, n_epoch=1)
    few = {name: column[:1] for name, column in train.items()}
    loaders = DataGenerator(train, labels).generate_dataloader(
        x_val=few, y_val=labels[:1], x_test=few, y_test=labels[:1], batch_size=batch
    )

    def predict(valid: Arrays) -> np.ndarray:
        model.eval()
        return _in_batches(lambda part: model({k: torch.from_numpy(v) for k, v in part.items()}).numpy(), valid)

    return lambda: trainer.train_one_epoch(loaders[0]), predict, model


def _deepctr(sizes: dict[str, Any], train: Arrays, labels: np.ndarray) -> tuple[Callable, Callable, torch.nn.Module]:
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat  # pyright: ignore[reportMissingImports]
    from deepctr_torch.models.multitask.ple import PLE  # pyright: ignore[reportMissingImports]

    dim, batch = sizes["dim"], sizes["batch"]
    video = {"vocabulary_size": sizes["videos"] + 1, "embedding_dim": dim, "embedding_name": "video_id"}
    columns = [
        SparseFeat("user_id", sizes["users"] + 1, dim),
        SparseFeat("video_id", **video),
        VarLenSparseFeat(SparseFeat("watched", **video), maxlen=train["watched"].shape[1], combiner="mean"),
        DenseFeat("dense", train["dense"].shape[1]),
    ]
    names = [f"task{task}" for task in range(labels.shape[1])]
    model = PLE(columns, sizes["shared"], sizes["own"], sizes["levels"], (sizes["width"],), (), (sizes["tower"],),
                l2_reg_linear=0, l2_reg_embedding=0, task_types=["binary"] * len(names), task_names=names)  # fmt: skip
    model.compile(torch.optim.Adam(model.parameters(), lr=sizes["rate"]), loss="binary_crossentropy", metrics=[])
    return (
        lambda: model.fit(dict(train), labels, batch_size=batch, epochs=1, verbose=0),
        lambda valid: model.predict(dict(valid), batch_size=batch),
        model,
    )


@torch.no_grad()
def _in_batches(model: Callable[[Arrays], np.ndarray], rows: Arrays, batch: int = 8192) -> np.ndarray:
    number = len(rows["user_id"])
    parts = ({k: v[start : start + batch] for k, v in rows.items()} for start in range(0, number, batch))
    return np.concatenate([model(part) for part in parts])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
