"""Failed runs as the reader at night sees them."""

from ray.train import ControllerError, WorkerGroupError

from pipeline.cluster.failures import cause_of

_TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in y\n{}\n'
_CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"


def test_the_cause_is_named_and_not_its_consequences() -> None:
    """A page of tracebacks of all ranks, of which the one that says why is the third."""
    full = Exception(_TRACEBACK.format("OSError: [Errno 28] No space left on device"))
    closed = Exception(_TRACEBACK.format(_CLOSED))
    error = cause_of(WorkerGroupError("long", {0: closed, 1: full, 2: closed}))
    assert str(error) == "rank 1: OSError: [Errno 28] No space left on device"
    error = cause_of(WorkerGroupError("long", {0: full, 1: full}))
    assert str(error) == "rank 0, 1: OSError: [Errno 28] No space left on device"


def test_a_rank_that_saw_another_one_go_is_better_than_nothing() -> None:
    """An empty error, where every rank has only consequences to tell."""
    error = cause_of(WorkerGroupError("long", {1: Exception(_TRACEBACK.format(_CLOSED))}))
    assert str(error) == f"rank 1: {_CLOSED}"


def test_a_failure_of_ray_train_itself() -> None:
    """An error of which rank `None` is to blame."""
    assert cause_of(ControllerError(ValueError("no room"))) == "no room"
