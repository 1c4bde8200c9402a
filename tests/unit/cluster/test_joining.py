"""Starting and joining Ray: failures end within seconds with one error that has a remedy."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
import ray
from ray.core.generated import gcs_service_pb2

from adagrpo_ray.cluster import connecting as cluster
from adagrpo_ray.cluster import joining
from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.cluster.placement import address
from adagrpo_ray.config import Config
from adagrpo_ray.config.run_settings import RunSettings
from adagrpo_ray.errors import ResourceError
from tests.support.reserved import closed_address, silent_address

SERVICE = "ray.rpc.NodeInfoGcsService"
NODE = ray.util.get_node_ip_address()
"""Ray takes it for 127.0.0.1 and localhost."""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def closed() -> Iterator[str]:
    with closed_address(NODE) as there:
        yield there


@pytest.fixture
def silent() -> Iterator[str]:
    with silent_address(NODE) as there:
        yield there


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server."""
    with http.server.ThreadingHTTPServer((NODE, 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{NODE}:{server.server_port}"
        server.shutdown()


@pytest.fixture
def head_of() -> Iterator[Callable[[str], str]]:
    """Return a function that starts a server like the head node of a Ray of some version, and returns its address."""
    servers = []

    def start(version: str) -> str:
        def alive(request: object, context: object) -> object:
            return gcs_service_pb2.CheckAliveReply(ray_version=version)

        handler = grpc.unary_unary_rpc_method_handler(
            alive,
            request_deserializer=gcs_service_pb2.CheckAliveRequest.FromString,
            response_serializer=gcs_service_pb2.CheckAliveReply.SerializeToString,
        )
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"CheckAlive": handler}),))
        port = server.add_insecure_port(f"{NODE}:0")
        server.start()
        servers.append(server)
        return f"{NODE}:{port}"

    yield start
    for server in servers:
        server.stop(None)


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(ResourceError) as raised:
        work()
    return str(raised.value)


# --- the address of a cluster ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("127.0.0.1", "is no HOST:PORT; write it as 10.0.0.1:6379"),
        (":6379", "is no HOST:PORT"),
        ("host:0", "is no HOST:PORT"),
        ("host:65536", "is no HOST:PORT"),
        ("host:port", "is no HOST:PORT"),
        ("127.0.0.1:\uff16379", "is no HOST:PORT"),
        ("::1:6379", "is no HOST:PORT"),
        ("ray://127.0.0.1:10001", "ray:// is for Ray Client"),
        ("http://127.0.0.1:8265", "a dashboard's is for launch/submit.py"),
        ("nosuch.invalid:6379", "cannot be reached at nosuch.invalid:6379"),
        ("a..b:6379", "cannot be reached"),
        ("x" * 300 + ":6379", "cannot be reached"),
        ("[2001:db8::1]:1", "cannot be reached at [2001:db8::1]:1"),
    ],
)
def test_invalid_address_is_refused(given: str, message: str) -> None:
    assert message in refusal(lambda: joining.check_address(given))


def test_closed_port_is_refused_at_once(closed: str) -> None:
    began = time.monotonic()
    message = refusal(lambda: joining.check_address(closed))
    assert f"cannot be reached at {closed}" in message
    assert "start it (ray start --head)" in message
    assert time.monotonic() - began < joining.CONNECT_S


@pytest.mark.skipif(NODE == "127.0.0.1", reason="this machine has no other address")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_localhost_is_resolved_as_by_ray(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert f"cannot be reached at {NODE}:{port}" in refusal(lambda: joining.check_address(f"{host}:{port}"))


def test_silent_port_is_refused_after_timeout(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_S", 0.5)
    assert f"the program that listens at {silent} gave no answer within 0.5 s" in refusal(
        lambda: joining.check_address(silent)
    )


def test_web_server_is_refused(web: str) -> None:
    assert f"the program that listens at {web} is no Ray" in refusal(lambda: joining.check_address(web))


def test_ray_of_other_version_is_refused(head_of: Callable[[str], str]) -> None:
    message = refusal(lambda: joining.check_address(head_of("2.9.3")))
    assert f"has Ray 2.9.3 and this program Ray {ray.__version__}; install the same one" in message


def test_ray_of_same_version_is_accepted(head_of: Callable[[str], str]) -> None:
    there = head_of(ray.__version__)
    assert joining.check_address(there) == there


def test_auto_uses_address_found_by_ray(closed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "there is no Ray on this machine" in refusal(lambda: joining.check_address("auto"))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(closed)  # of a Ray that has crashed
    assert f"cannot be reached at {closed}" in refusal(lambda: joining.check_address("auto"))


@pytest.mark.parametrize(
    ("setting", "variable", "joined"),
    [
        (None, None, None),
        (None, "", None),
        (None, " ", None),
        (None, "local", None),
        (None, "10.0.0.1:1", "10.0.0.1:1"),
        (None, " 10.0.0.1:1 ", "10.0.0.1:1"),
        ("auto", None, "auto"),
        ("auto", "10.0.0.1:1", "10.0.0.1:1"),
        ("auto", "local", None),
        ("local", "10.0.0.1:1", None),
        ("10.0.0.2:2", "10.0.0.1:1", "10.0.0.2:2"),
    ],
)
def test_address_is_chosen_as_by_ray(
    setting: str | None, variable: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert address(RunSettings(ray_address=setting)) == joined


# --- the folder for temporary files ---


def length(folder: str, bytes_: int) -> str:
    return f"{folder}/{'x' * (bytes_ - len(folder) - 1)}"


@pytest.mark.parametrize(("variable", "room"), [("RAY_TMPDIR", 39), ("TMPDIR", 39)])
def test_folder_with_long_path_is_refused(
    variable: str, room: int, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv(variable, length(folder, room))
        joining.check_temporary_folders()
        monkeypatch.setenv(variable, length(folder, room + 1))
        message = refusal(joining.check_temporary_folders)
    assert f"has {room + 1} bytes, and the path of a socket that Ray creates there leaves {room}" in message
    assert f"set {variable} to a shorter folder, such as /tmp" in message


def test_vllm_uses_tmpdir_even_with_ray_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 66)
    assert "a socket that vLLM creates there leaves 70" in refusal(joining.check_temporary_folders)


def test_longest_socket_of_ray_has_expected_length() -> None:
    """The names of sockets are made by Ray's own code, from these values."""
    import inspect

    from ray._private.node import Node

    source = inspect.getsource(Node)
    assert 'f"session_{date_str}_{os.getpid()}"' in source
    assert '"sockets"' in source
    assert '"plasma_store"' in source
    assert len(joining.RAY_SOCKET) == len("/ray/session_2026-11-28_20-30-00_123456_1234567/sockets/plasma_store")


@pytest.mark.parametrize("folder", ["", "relative", "/proc/nothing", "FILE"])
def test_unusable_folder_is_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null" if folder == "FILE" else folder)
    assert "RAY_TMPDIR=" in refusal(joining.check_temporary_folders)


def test_full_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(joining, "_fill", full)
    message = refusal(joining.check_temporary_folders)
    assert "Ray cannot write into /tmp (No space left on device); make room there" in message


# --- errors of ray.init ---


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(28, "No space left on device"),
            "Ray did not start on this machine (OSError: [Errno 28] No space left",
        ),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (
            ValueError("Ray component metrics_export uses a port"),
            "ValueError: Ray component metrics_export uses a port",
        ),
        (RuntimeError("Failed to start GCS"), "RuntimeError: Failed to start GCS"),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
        (ConnectionError("refused"), "ConnectionError: refused"),
        (KeyError("CPU"), "KeyError: 'CPU'"),
    ],
)
def test_error_of_ray_start_is_converted_and_leaves_no_process(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = []

    def failing(**options: object) -> None:
        children.append(subprocess.Popen(["sleep", "600"]))
        raise error

    monkeypatch.setattr(ray, "init", failing)

    def start() -> None:
        with connect(Config(), None):
            pass

    refused = refusal(start)
    assert message in refused
    assert "ulimit -a" in refused
    assert children[0].wait(timeout=120) != 0


def test_error_of_ray_on_joining_is_converted(head_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = head_of(ray.__version__)
    mismatch = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.9\n    Python: 3.9\nThis process"
    )
    monkeypatch.setattr(cluster, "_init", lambda **options: (_ for _ in ()).throw(mismatch))

    def join() -> None:
        with connect(Config(), there):
            pass

    message = refusal(join)
    assert f"the Ray cluster at {there!r} cannot be joined" in message
    assert "The cluster was started with: Ray: 2.9 Python: 3.9" in message
    assert "use the same Ray and Python as on its nodes" in message
