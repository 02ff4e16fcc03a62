"""The hash of ids: frozen for years, the same for every Arrow layout, and spread evenly over a table's rows."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.hashing import hash_ids, mix64, rows_of, salt_of

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BYTES = st.lists(st.binary(max_size=40), max_size=12)

_FROZEN_SALT = 0x5BD146049664942F
_FROZEN_INTEGERS = [
    "0x31718f1cb343bce9",
    "0x139919b5ae1f6d75",
    "0x273e574239d2a0fd",
    "0x1b6ce6c73a85a922",
    "0xebec6b33fd160d5d",
    "0x240f38c90730f382",
]
_FROZEN_STRINGS = [
    "0x31718f1cb343bce9",
    "0x6fcf1e46c7e25686",
    "0xf0b6ecdae9532fe4",
    "0xcc6f95704d1cac70",
    "0x6acb0f5ef1f2483b",
    "0x7e8a5b9f45718d48",
    "0x65bb769d7223aa0a",
    "0x3c7bdd00ea2aa264",
]
_FROZEN_ROWS = [193139, 76555, 153295, 107130, 921578, 140857]


def _mix(value: int, salt: int) -> int:
    """splitmix64's finaliser in Python's own integers."""
    value = (value + salt + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _hash_bytes(text: bytes, salt: int) -> int:
    state = _mix(len(text), salt)
    for start in range(0, len(text), 8):
        state = _mix(state ^ int.from_bytes(text[start : start + 8], "little"), salt)
    return state


def test_mix64_is_splitmix64():
    """Another mixer slips in: these are the published first outputs of splitmix64 with seed 0."""
    states = np.array([0, _GOLDEN, 2 * _GOLDEN & _MASK], np.uint64)
    assert [hex(value) for value in mix64(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_frozen_values():
    """Any change of the hash: it would silently move every row of every table that was ever trained."""
    assert salt_of("counterpoise") == _FROZEN_SALT
    integers = pa.array([0, 1, -1, 42, 2**63 - 1, -(2**63)])
    assert [hex(value) for value in hash_ids(integers, _FROZEN_SALT)] == _FROZEN_INTEGERS
    strings = pa.array(["", "a", "video_7", "12345678", "123456789", "x" * 16, "x" * 17, "größe 日本"])
    assert [hex(value) for value in hash_ids(strings, _FROZEN_SALT)] == _FROZEN_STRINGS
    assert rows_of(hash_ids(integers, _FROZEN_SALT), 1_000_003).tolist() == _FROZEN_ROWS


@settings(max_examples=60, deadline=None)
@given(texts=_BYTES, salt=st.integers(0, _MASK))
@example(texts=[b"x" * length for length in range(26)], salt=_MASK)
def test_strings_equal_a_loop_over_bytes(texts: list[bytes], salt: int):
    """The vectorised fold reads a neighbour's bytes, or forgets the bytes of the last partial word."""
    found = hash_ids(pa.array(texts, pa.binary()), salt).tolist()
    assert found == [_hash_bytes(text, salt) for text in texts]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), salt=st.integers(0, _MASK))
def test_integers_equal_a_loop(values: list[int], salt: int):
    """Signed overflow or a salt beyond 63 bits changes the hash."""
    assert hash_ids(pa.array(values, pa.int64()), salt).tolist() == [_mix(value, salt) for value in values]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=12), before=_BYTES, after=_BYTES)
def test_strings_hash_alike_in_every_layout(texts: list[str], before: list[bytes], after: list[bytes]):
    """The hash depends on the array's offset, chunks, offset width or dictionary: the same id gets two rows."""
    expected = [_hash_bytes(text.encode(), 5) for text in texts]
    plain = pa.array(texts, pa.string())
    padded = pa.array([*before, *(text.encode() for text in texts), *after], pa.binary())
    sliced = padded.slice(len(before), len(texts))
    half = len(texts) // 2
    chunked = pa.chunked_array([plain[:half], plain[half:]]).combine_chunks()
    shuffled = pa.DictionaryArray.from_arrays(
        pa.array([0, *reversed(range(len(texts)))], pa.int16()), pa.array(texts[::-1] or ["-"], pa.string())
    )[1:]
    layouts = [plain, plain.cast("large_string"), sliced, sliced.cast("large_binary"), chunked, shuffled]
    for layout in layouts:
        assert hash_ids(layout, 5).tolist() == expected, layout.type


def test_integers_hash_alike_in_every_width():
    """A column that a writer stored in fewer bits is another id."""
    values = [0, 1, 7, 100]
    expected = hash_ids(pa.array(values, pa.int64()), 3).tolist()
    for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"):
        assert hash_ids(pa.array([99, *values], kind)[1:], 3).tolist() == expected, kind
        assert hash_ids(pa.array(values, kind).dictionary_encode(), 3).tolist() == expected, kind
    assert hash_ids(pa.array([-5], pa.int8()), 3) == hash_ids(pa.array([-5], pa.int64()), 3)
    assert hash_ids(pa.array([False, True]), 3).tolist() == expected[:2]


def test_no_ids():
    """An empty unit, or one with empty bags only, stops a job."""
    for kind in (pa.int64(), pa.string(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())):
        assert hash_ids(pa.array([], kind), 1).shape == (0,)
    assert hash_ids(pa.array(["", ""]), 1).tolist() == [_hash_bytes(b"", 1)] * 2  # no data buffer at all


def test_different_strings_differ():
    """Length, order of words, or trailing zero bytes are not hashed: distinct ids share one row for ever."""
    words = [b"12345678", b"abcdefgh"]
    texts = {b"x" * length for length in range(40)} | {b"x" + b"\0" * length for length in range(40)}
    texts |= {b"\0" * length for length in range(40)}
    texts |= {words[0] + words[1], words[1] + words[0], words[0] + words[0], words[0] + b"abcdefg", words[0]}
    for length in (7, 8, 9, 15, 16, 17):
        texts |= {bytes([65 + (place == at) for place in range(length)]) for at in range(length)}
    texts |= {f"user_{number:09d}".encode() for number in range(100_000)}
    assert len(set(hash_ids(pa.array(sorted(texts), pa.binary()), 0).tolist())) == len(texts)


def test_every_bit_of_an_id_moves_half_of_the_hash():
    """A weak mixer leaves patterns: ids in steps of a power of two would fall on few rows."""
    base = np.random.default_rng(0).integers(0, 2**62, 500)
    for bit in range(63):
        flips = np.bitwise_count(mix64(base) ^ mix64(base ^ (1 << bit)))
        assert 30 < flips.mean() < 34, bit
        text, other = (np.stack([ids, ids[::-1]], axis=1).tobytes() for ids in (base, base ^ (1 << bit)))
        pairs = [
            hash_ids(pa.array([data[at : at + 16] for at in range(0, 8000, 16)], pa.binary()), 0)
            for data in (text, other)
        ]
        assert 30 < np.bitwise_count(pairs[0] ^ pairs[1]).mean() < 34, bit


def test_another_salt_is_another_hash():
    """The recorded salt is ignored, for integers or for strings."""
    for ids in (pa.array(range(1000)), pa.array([str(number) for number in range(1000)])):
        ours, theirs = (rows_of(hash_ids(ids, salt_of(name)), 1_000_000) for name in ("ours", "theirs"))
        assert np.count_nonzero(ours == theirs) < 5


def test_floats_are_no_ids():
    """Ids that pandas turned into floats (a null in an integer column) hash to other rows than the integers did."""
    with pytest.raises(TypeError, match="ids of type double, expected integers, strings or binary"):
        hash_ids(pa.array([1.0]), 0)


def test_a_slice_costs_what_it_holds():
    """Each row range of a large row group copies the text of the whole row group."""
    large = pa.array(["x" * 1000]).take(pa.array(np.zeros(20_000, np.int64)))
    piece = large[10_000:10_010]
    tracemalloc.start()
    found = hash_ids(piece, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == [_hash_bytes(b"x" * 1000, 0)] * 10
    assert peak < 1_000_000


@settings(max_examples=60, deadline=None)
@given(
    hashes=st.lists(st.integers(0, _MASK), min_size=1, max_size=20),
    num_rows=st.sampled_from([1, 2, 3, 10, 1_000_003, 2**31 - 1, 2**31]),
)
@example(hashes=[0, _MASK, 2**63, 2**63 - 1], num_rows=2**31)
def test_rows_are_within_the_table(hashes: list[int], num_rows: int):
    """The multiply overflows 64 bits, or the largest hash falls on the row after the last."""
    found = rows_of(np.array(hashes, np.uint64), num_rows)
    assert found.dtype == np.int32
    assert found.tolist() == [(value >> 32) * num_rows >> 32 for value in hashes]
    assert 0 <= found.min() <= found.max() < num_rows


@pytest.mark.parametrize("num_rows", [2, 1000, 1024])
@pytest.mark.parametrize("step", [1, 1024, 2**32, 2**40])
def test_rows_are_uniform(num_rows: int, step: int):
    """Sequential ids, or ids with constant low bits, crowd on few rows: chi-square within 5 deviations."""
    ids = (np.arange(200_000) * step).astype(np.int64)
    counts = np.bincount(rows_of(hash_ids(pa.array(ids), salt_of("counterpoise")), num_rows), minlength=num_rows)
    expected = len(ids) / num_rows
    chi_square = np.sum((counts - expected) ** 2) / expected
    assert abs(chi_square - (num_rows - 1)) < 5 * np.sqrt(2 * (num_rows - 1))


def test_the_uniformity_test_sees_an_uneven_hash():
    """Negative control of the test above: the ids themselves, unmixed, all fall on row 0."""
    assert set(rows_of(np.arange(200_000, dtype=np.uint64), 1000)) == {0}
