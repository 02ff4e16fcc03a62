"""Start of a local Ray, or a connection to a cluster; surroundings in which none can start are refused."""

import errno
import logging
import os
import re
import socket
from typing import Any

import ray
from ray._common.utils import get_default_system_temp_dir, get_system_memory
from ray._private import worker
from ray._private.services import get_ray_address_from_environment

from features.errors import NO_PLACE, ConfigError
from pipeline.config.workers import RayConfig

_RAY_ENVIRONMENT = {"RAY_DATA_LOG_LEVEL": "ERROR", "RAY_COLOR_PREFIX": "0"}
_SOCKET = "/ray/session_2026-11-29_13-45-07_176219_{pid}/sockets/plasma_store"  # below the temporary folder
_LONGEST_SOCKET = 107
_CONNECT_S = 10.0

logger = logging.getLogger(__name__)


def start_ray(config: RayConfig) -> None:
    """Start a local Ray in this process, or join the config's cluster.

    Raises:
        ConfigError: No Ray can start here with this configuration, or there is no such cluster.
        ConnectionError: The cluster does not answer.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if config.address == "local":
        logger.info("starting Ray")
        _start_local(config)
    else:
        logger.info("connecting to Ray at %s", config.address)
        _join(config.address)


def _start_local(config: RayConfig) -> None:
    temporary = get_default_system_temp_dir()
    most = _LONGEST_SOCKET - len(_SOCKET.format(pid=os.getpid()))
    if len(os.fsencode(temporary)) > most:
        variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        raise ConfigError(
            f"{variable} is {temporary}, too long for the sockets of Ray: set it to a folder of at most {most} bytes"
        )
    store = config.object_store_mb * 2**20
    if store > get_system_memory():
        raise _too_large(config)
    try:
        _init(address="local", num_cpus=config.num_cpus, object_store_memory=store)
    except OSError as error:
        if error.errno not in {*NO_PLACE, errno.ENOENT}:
            raise
        raise ConfigError(
            f"Ray cannot write {error.filename} ({error.strerror}): give HOME and TMPDIR a folder that can be written"
        ) from error
    except ValueError as error:
        if "object_store_memory" not in str(error):
            raise
        raise _too_large(config) from error


def _too_large(config: RayConfig) -> ConfigError:
    return ConfigError(
        f"ray.object_store_mb is {config.object_store_mb}, and this machine has {get_system_memory() // 2**20} MiB of "
        "memory: lower it"
    )


def owns_ray() -> bool:
    """Return True if this process has started its Ray, which ends with it."""
    node = worker._global_node
    return node is not None and node.head


def _join(address: str) -> None:
    found = _running_here() if address == "auto" else address
    place = re.fullmatch(r"(?:ray://)?\[?([^\s/\]]+)\]?:(\d+)", found)
    if place is None:
        raise ConfigError(f"ray.address is {address!r}: expected local, auto or HOST:PORT")
    try:
        socket.create_connection((place[1], int(place[2])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:  # Ray itself would try for minutes
        if address == "auto":
            raise _none_here() from error
        raise ConnectionError(
            f"no Ray answers at {address} ({error}): start its head, or correct ray.address"
        ) from error
    _init({"RAY_ADDRESS": found}, address=found)  # Ray's own processes would look for one, and may find several


def _running_here() -> str:
    try:
        return get_ray_address_from_environment("auto", None)
    except ConnectionError as error:  # Ray's words name an option that is not ours
        raise _none_here() from error


def _none_here() -> ConfigError:
    return ConfigError(
        "ray.address is auto, and no Ray runs on this machine: run the command where one runs, give ray.address its "
        "HOST:PORT, or set ray.address: local"
    )


def _init(environment: dict[str, str] | None = None, **settings: Any) -> None:
    runtime_env = {"env_vars": _RAY_ENVIRONMENT | (environment or {})}
    ray.init(log_to_driver=True, logging_level=logging.WARNING, runtime_env=runtime_env, **settings)
