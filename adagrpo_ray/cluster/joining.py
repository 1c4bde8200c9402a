"""Quick checks before `ray.init` that Ray can be started or joined, and conversion of Ray's errors to our own.

`ray.init` waits about 14 minutes for a cluster that does not answer. It ends with a traceback if the path of its folder
for temporary files is too long or cannot be written.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ray.exceptions import AuthenticationError

from adagrpo_ray.cluster.authentication import takes_token
from adagrpo_ray.cluster.placement import address
from adagrpo_ray.config.run_settings import RunSettings
from adagrpo_ray.errors import AdaGRPOError, ResourceError, first_line

SET_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token or RAY_AUTH_TOKEN_PATH to a file with it"
SOCKET_PATH = 107
"""Most bytes in the path of a Unix socket (sun_path in sys/un.h has 108, the last one zero)."""
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket in Ray's folder (ray._private.node); the last number is a process id."""
VLLM_SOCKET = "/00000000-0000-0000-0000-000000000000"
"""The longest path of a socket of vLLM in TMPDIR (vllm.utils.network_utils.get_open_zmq_ipc_path)."""
CONNECT_S = 5.0
ANSWER_S = 10.0
LEAST_FREE = 2**20
"""Bytes that the check writes and removes, since Ray writes logs at once."""


def find_ray(run: RunSettings) -> str | None:
    """Return the address of the Ray to run on; None to start one. A program that is connected to a Ray runs on that.

    Raises ResourceError if the program is connected to another Ray than `run.ray_address` or RAY_ADDRESS names.
    """
    import ray

    named = address(run)
    if not ray.is_initialized():
        return named
    connected = str(ray.get_runtime_context().gcs_address)
    if named not in (None, "auto", connected):
        raise ResourceError(
            f"this program is connected to the Ray at {connected} already, and run.ray_address or RAY_ADDRESS names "
            f"{named!r}; call ray.shutdown() first, or remove the address"
        )
    return connected


def check_ray(joined: str | None) -> None:
    """Raise ResourceError if the Ray cluster at `joined` does not answer, or if None and no Ray can start here."""
    import ray

    if joined is None:
        check_temporary_folders()
    elif not ray.is_initialized():
        check_address(joined)


def check_temporary_folders() -> None:
    """Raise ResourceError unless Ray and vLLM can create their sockets and files in the folders for temporary files."""
    ray_variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    ray_folder = os.environ.get(ray_variable, "/tmp")
    _check_folder(ray_variable, ray_folder, "Ray", RAY_SOCKET)
    if os.environ.get("TMPDIR"):
        _check_folder("TMPDIR", os.environ["TMPDIR"], "vLLM", VLLM_SOCKET)


def _check_folder(variable: str, folder: str, user: str, below: str) -> None:
    named = f"{variable}={folder!r}"
    if not Path(folder).is_absolute():
        raise ResourceError(f"{named} is no absolute path; set it to one such as /tmp, or unset it")
    room = SOCKET_PATH - len(below)
    length = len(os.fsencode(folder.rstrip("/")))
    if length > room:
        raise ResourceError(
            f"{named} has {length} bytes, and the path of a socket that {user} creates there leaves {room}; set "
            f"{variable} to a shorter folder, such as /tmp"
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            _fill(probe, LEAST_FREE)
    except OSError as error:
        raise ResourceError(
            f"{user} cannot write into {named if variable in os.environ else folder} ({error.strerror}); make room "
            f"there, or set {variable} to a folder that can be written"
        ) from None


def _fill(file: IO[bytes], size: int) -> None:
    file.write(bytes(size))
    file.flush()


def check_address(address: str) -> str:
    """Check that a Ray of this version answers at `address`, which may be 'auto', and return its HOST:PORT.

    Raises ResourceError within CONNECT_S + ANSWER_S if it does not.
    """
    from ray._private.services import resolve_ip_for_localhost  # Ray's own conversion of 127.0.0.1 and localhost

    source = f"the Ray cluster at {address!r:.200} (run.ray_address or RAY_ADDRESS)"
    scheme, separator, _ = address.partition("://")
    if separator:
        problem = (
            "is for Ray Client, which runs do not support"
            if scheme == "ray"
            else "is no address of a cluster; a dashboard's is for launch/submit.py --address"
        )
        raise ResourceError(f"{source}: {scheme}:// {problem}; give HOST:PORT of the head node, as in 10.0.0.1:6379")
    found = _find_local(source) if address == "auto" else address
    host, port = _split(found, source)
    host = resolve_ip_for_localhost(host)
    found = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            pass
    except (OSError, UnicodeError) as error:
        raise ResourceError(
            f"{source} cannot be reached at {found:.200} ({first_line(error)}); start it (ray start --head), correct "
            "the address, or unset it to start a local Ray"
        ) from None
    _check_alive(found, source)
    return found


def _find_local(source: str) -> str:
    """Return the address of the Ray on this machine for `auto`. Ray finds it by its files and processes."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address("auto")
    except Exception as error:
        raise ResourceError(
            f"{source}: there is no Ray on this machine ({first_line(error)}); start one (ray start --head), or give "
            "HOST:PORT of its head node"
        ) from None
    if found is None:
        raise ResourceError(f"{source}: there is no Ray on this machine; start one (ray start --head)")
    return str(found)


def _split(address: str, source: str) -> tuple[str, int]:
    host, colon, port = address.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""  # an IPv6 address without brackets
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ResourceError(
            f"{source} is no HOST:PORT; write it as 10.0.0.1:6379, [::1]:6379 or auto, with a port from 1 to 65535"
        )
    return host, int(port)


def _check_alive(address: str, source: str) -> None:
    """Check that the control store (GCS) of the head node answers, as Ray does when it joins. Raises ResourceError."""
    import grpc  # type: ignore[import-untyped]
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    # Without a proxy, as Ray's own connections.
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    try:
        reply = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_S)
    except AuthenticationError as error:  # on our side: the mode is "token", and no token is set
        raise _without_token(address, error) from None
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise _refused(address, error.details() or code.name) from None
        silent = code is grpc.StatusCode.DEADLINE_EXCEEDED
        why = f"gave no answer within {ANSWER_S:g} s" if silent else f"is no Ray ({code.name})"
        raise ResourceError(
            f"{source}: the program that listens at {address} {why}; give the port of the head node (6379 "
            "unless ray start --port was given), and check its logs"
        ) from None
    finally:
        channel.close()
    if reply.ray_version and reply.ray_version != ray.__version__:
        raise ResourceError(
            f"{source} has Ray {reply.ray_version} and this program Ray {ray.__version__}; install the same one on both"
        )


@contextmanager
def ray_errors(joined: str | None) -> Iterator[None]:
    """Convert errors of `ray.init` in the block to ResourceError with a remedy.

    `joined` is the address of the cluster, None if Ray is started here.
    """
    try:
        yield
    except AdaGRPOError:
        raise
    except AuthenticationError as error:
        raise _without_token(joined, error) from None
    except ConnectionError as error:
        if joined is None:
            raise ResourceError(_not_started(error)) from None
        raise _refused(joined, error) from None
    except Exception as error:  # ray.init raises OSError, RuntimeError, ValueError, RaySystemError and more
        if joined is None:
            raise ResourceError(_not_started(error)) from None
        raise ResourceError(
            f"the Ray cluster at {joined!r} cannot be joined ({_one_line(error)}); use the same Ray and Python as on "
            "its nodes, and check that its head node is alive"
        ) from None


def _without_token(joined: str | None, error: AuthenticationError) -> ResourceError:
    return ResourceError(
        f"the Ray cluster at {joined!r} takes no request without its token ({first_line(error)}); {SET_TOKEN}"
    )


def _refused(joined: str, reason: object) -> ResourceError:
    return ResourceError(
        f"no Ray cluster at {joined!r} (run.ray_address or RAY_ADDRESS) that takes requests with "
        f"{'our' if takes_token() else 'no'} token: {reason}; if it requires one, {SET_TOKEN}"
    )


def _not_started(error: Exception) -> str:
    return (
        f"Ray did not start on this machine ({_one_line(error)}); check the space in its folder (RAY_TMPDIR, else "
        "TMPDIR, else /tmp) and in /dev/shm, the limits of this shell (ulimit -a), and the logs in that folder's "
        "ray/session_latest/logs"
    )


def _one_line(error: Exception) -> str:
    """Return the whole message in one line: Ray's error for another version has its point in the later lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
