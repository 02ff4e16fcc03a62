"""Verification of a checkpoint's tensors by the ranks that load them, and what follows from damage."""

import hashlib
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from records import manifest_of
from small_lines import DAYS, begin_run, line, save_checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pipeline.checkpoint import read, verified_file, write
from pipeline.checkpoint.read import load_tensors
from pipeline.checkpoint.verified_file import VerifiedFile
from pipeline.checkpoint.write import write_checkpoint
from pipeline.lineage import stored_checkpoint
from pipeline.lineage.file_marks import FileMarker
from pipeline.lineage.line import Line
from pipeline.lineage.records import FileMark, Manifest
from pipeline.lineage.stored_checkpoint import DamagedFile, damage, note_damage, read_manifest
from pipeline.storage.files import Storage

__all__ = ["line"]  # fixtures
CHUNK = 4096
NAME = "checkpoints/2026-03-01/0001/0000000010"
ROWS = 30_000


# --- Ranks ---


def _tensors(fill: float | None) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = torch.arange(float(ROWS)) if fill is None else torch.full((ROWS,), fill)
    return {"model": {name: distribute_tensor(rows * (1 + place), mesh, [Shard(0)]) for place, name in enumerate("ab")}}


def _write(rank: int, num_ranks: int, folder: str) -> None:
    manifest = None if rank else manifest_of(step=10, day="2026-03-01")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "FileMarker", partial(FileMarker, CHUNK))
        assert dist.group.WORLD is not None
        write_checkpoint(_tensors(None), Storage(folder), NAME, manifest, dist.group.WORLD)


def _load(rank: int, num_ranks: int, folder: str, chunk_bytes: int | None = None) -> dict[str, Any]:
    """Load; returns the ranges that this rank read, and the damage that it was told of, or what is wrong with it."""
    ranges: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        if chunk_bytes is not None:
            patch.setattr(read, "CHUNK_BYTES", chunk_bytes)
            patch.setattr(verified_file, "CHUNK_BYTES", chunk_bytes)
        read_range = Storage.read_range

        def note(storage: Storage, name: str, begin: int, end: int) -> bytes:
            ranges.append((name.rpartition("/")[2], begin, end))
            return read_range(storage, name, begin, end)

        patch.setattr(Storage, "read_range", note)
        tensors = _tensors(-1.0)
        assert dist.group.WORLD is not None
        try:
            load_tensors(tensors, Storage(folder), NAME, dist.group.WORLD)
        except DamagedFile as error:
            return {"damaged": error.file, "said": str(error)}
    expected = _tensors(None)["model"]
    for name, found in tensors["model"].items():
        assert isinstance(found, DTensor)
        assert torch.equal(found.to_local(), expected[name].to_local()), name
    return {"ranges": ranges}


@pytest.fixture(scope="module")
def written(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a line with a checkpoint of two ranks, in many chunks."""
    folder = tmp_path_factory.mktemp("line")
    run_ranks(partial(_write, folder=str(folder)), 2)
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_each_chunk_is_read_once(run_ranks: Any, written: Path, num_ranks: int) -> None:
    """Catches a checkpoint that is read once to be verified and once to be loaded, or by ranks that need no part."""
    results = run_ranks(partial(_load, folder=str(written)), num_ranks)
    counts = [Counter(one for one in found["ranges"] if one[0].endswith(".distcp")) for found in results]
    total = sum(counts, Counter())
    files = {file.name: file.stat().st_size for file in (written / NAME).glob("*.distcp")}
    assert len(files) == 2
    assert all(size > 20 * CHUNK for size in files.values())
    assert {(name, begin) for name, begin, _ in total} == {
        (name, begin) for name, size in files.items() for begin in range(0, size, CHUNK)
    }
    assert max(max(count.values()) for count in counts) == 1
    files_of = [sorted({name for name, _, _ in count}) for count in counts]
    if num_ranks == 3:  # a saved piece is read as a whole by each rank that needs a part of it
        assert files_of == [["__0_0.distcp"], ["__0_0.distcp", "__1_0.distcp"], ["__1_0.distcp"]]
    else:
        assert max(total.values()) == 1


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("place", [0, CHUNK, 17 * CHUNK - 1, -1])
def test_a_flipped_byte_is_found_by_all_ranks(run_ranks: Any, copied: Path, num_ranks: int, place: int) -> None:
    """Catches weights that are loaded as they were not written; or a rank that goes on while another one refuses."""
    _flip(copied / NAME / "__1_0.distcp", place)
    for found in run_ranks(partial(_load, folder=str(copied)), num_ranks):
        assert found["damaged"] == "__1_0.distcp"
        assert f"checkpoint {NAME} was not read: __1_0.distcp is not what was written, at bytes" in found["said"]
        assert "\n" not in found["said"]


def test_a_file_that_is_gone_is_damage(run_ranks: Any, copied: Path) -> None:
    """Catches a traceback, or a retry without end, for a file that somebody removed."""
    (copied / NAME / "__0_0.distcp").unlink()
    for found in run_ranks(partial(_load, folder=str(copied)), 2):
        assert found["damaged"] == "__0_0.distcp"
        assert found["said"].endswith("__0_0.distcp is missing")


def _as_format_4(folder: Path) -> None:
    """Write the manifest as before there were chunks."""
    storage = Storage(str(folder))
    manifest = read_manifest(storage, NAME, NAME)
    assert manifest is not None
    files = {}
    for file in manifest.files:
        data = storage.read(f"{NAME}/{file}")
        files[file] = FileMark(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "VERSION", 4)
        storage.write(f"{NAME}/manifest.json", manifest.model_copy(update={"files": files}).to_bytes())


def test_a_checkpoint_without_checksums_of_chunks(run_ranks: Any, copied: Path) -> None:
    """Catches an older checkpoint that cannot be loaded any more, or is loaded without a look at it."""
    _as_format_4(copied)
    for num_ranks in (1, 3):
        run_ranks(partial(_load, folder=str(copied), chunk_bytes=CHUNK), num_ranks)
    _flip(copied / NAME / "__1_0.distcp", 30_000)
    for chunk_bytes in (CHUNK, None):
        for found in run_ranks(partial(_load, folder=str(copied), chunk_bytes=chunk_bytes), 2):
            assert found["damaged"] == "__1_0.distcp"


# --- Marks and files ---


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 35])
def test_marks_of_any_writes_are_the_same(size: int) -> None:
    """Catches a checksum that depends on how the bytes were handed over, or an empty last chunk."""
    data = bytes(range(size))
    marks = []
    for step in (1, 3, 7, 100):
        marker = FileMarker(10)
        for begin in range(0, size, step):
            marker.update(data[begin : begin + step])
        marks.append(marker.mark())
    assert all(mark == marks[0] for mark in marks)
    chunks = [hashlib.sha256(data[begin : begin + 10]).hexdigest() for begin in range(0, size, 10)]
    assert marks[0].chunks == (tuple(chunks) if size > 10 else None)
    assert size > 10 or marks[0] == FileMark(bytes=size, sha256=hashlib.sha256(data).hexdigest())


def test_a_verified_file_reads_like_a_file(tmp_path: Path) -> None:
    """Catches a byte of another place: at a chunk's border, at the end, after a seek backwards."""
    data = bytes(torch.randint(256, (1000,), generator=torch.Generator().manual_seed(1)).tolist())
    (tmp_path / "file").write_bytes(data)
    marker = FileMarker(64)
    marker.update(data)
    draw = torch.Generator().manual_seed(2)
    with VerifiedFile(Storage(str(tmp_path)), "file", marker.mark()) as file, (tmp_path / "file").open("rb") as plain:
        for _ in range(300):
            place, size = (int(torch.randint(1100, (1,), generator=draw)) for _ in range(2))
            assert file.seek(place) == plain.seek(place)
            found = bytearray(size)
            number = file.readinto(found)
            assert number > 0 or place >= 1000 or size == 0
            assert found[:number] == plain.read(number)


# --- The choice ---


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file of tensors be too large for the choice to read."""
    monkeypatch.setattr(stored_checkpoint, "_SMALL_BYTES", 0)


def test_noted_damage_is_passed_over_until_it_is_mended(
    line: Line, large: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a damaged checkpoint that is chosen again and again, and one that is restored and never used again."""
    begin_run(line, DAYS, manifest_of(checkpoint="checkpoints/far", step=10**6))
    older, newer = save_checkpoint(line, 10), save_checkpoint(line, 20)
    path = Path(line.storage.path(newer)) / "__0_0.distcp"
    _flip(path, 100)
    assert _newest(line) == newer  # its tensors are not read
    note_damage(line.storage, newer, DamagedFile("it is not what was written", "__0_0.distcp"))
    assert _newest(line) == older
    assert "is passed over: __0_0.distcp has 5100 bytes" in caplog.text
    _flip(path, 100)
    assert _newest(line) == newer
    _flip(path.with_name(".metadata"), 1)
    assert _newest(line) == older


def _newest(line: Line) -> str:
    found = line.newest()
    assert found is not None
    return found.checkpoint


def test_tensors_are_not_read_at_the_choice(line: Line, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checkpoint of terabytes that one process reads whenever somebody looks at the line."""
    begin_run(line, DAYS, manifest_of(checkpoint="checkpoints/far", step=10**6))
    name = save_checkpoint(line, 10)
    opened = _opened_here(monkeypatch)
    manifest = line.intact_manifest(_newest(line))
    assert {path.rpartition("/")[2] for path in opened} == {".metadata", "cursor.arrow", "lanes.arrow"}
    opened.clear()
    assert damage(line.storage, name, manifest) is None  # the negative control
    assert f"{name}/__0_0.distcp" in opened


def _opened_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    for method in ("open_read", "read", "read_range"):
        original = getattr(Storage, method)

        def note(storage: Storage, name: str, *arguments: Any, original: Any = original) -> Any:
            if name.startswith("checkpoints/") and not name.endswith(".json"):
                opened.append(name)
            return original(storage, name, *arguments)

        monkeypatch.setattr(Storage, method, note)
    return opened
