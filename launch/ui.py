"""Chat with trained models and view runs in a browser: python launch/ui.py --runs runs [key=value ...]"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import ended, not_empty

from adagrpo_ray.cluster.children import ChildGuard
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.storage.cache import state_folder

TINY = Path(__file__).parent / "configs" / "tiny-cpu.yaml"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/ui.py",
        description="Chat with trained models and view runs in a browser.",
        epilog="The model and its settings are those of --config, else of the newest run in --runs, else the tiny "
        "model's. It is loaded with the first message. Settings and conversations are saved in "
        "$XDG_STATE_HOME/adagrpo_ray (~/.local/state/adagrpo_ray). SIGINT (Ctrl-C) or SIGTERM ends the program.",
    )
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="folder of the run folders (default: runs)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings for the first model offered")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on, 0 for a free one (default: 7860)")
    parser.add_argument("--no-chat", action="store_true", help="serve only the page of runs; no model is ever loaded")
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="require the password in this file; necessary if other machines can reach --host",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    return parser.parse_intermixed_args(arguments)


def when_ended(number: int, frame: FrameType | None) -> None:
    """Called after the server has ended: a further signal does not wait for the engine, which the guard kills."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: os._exit(128 + number))


def run(options: argparse.Namespace) -> None:
    from adagrpo_ray.viewer.guard import is_loopback, listen, read_password

    not_empty(options, "--runs", "--config", "--host", "--password-file")
    if Path(options.runs).exists() and not Path(options.runs).is_dir():
        raise ConfigError(f"--runs {options.runs} is a file; give the folder of the run folders")
    if not is_loopback(options.host) and options.password_file is None:
        raise ConfigError(
            f"--host {options.host} lets other machines see all runs and use the model; give --password-file, or "
            "leave out --host and reach 127.0.0.1 through a tunnel (ssh -L)"
        )
    password = None if options.password_file is None else read_password(options.password_file)
    with listen(options.host, options.port) as listening:
        serve_pages(options, password, listening)


def serve_pages(options: argparse.Namespace, password: str | None, listening: socket) -> None:
    from adagrpo_ray.viewer.offers import default_config

    default = None if options.no_chat else default_config(options.runs, options.config, options.overrides, TINY)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from adagrpo_ray.viewer.app import make_app, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"the pages need {error.name}; install the extra: pip install 'adagrpo_ray[ui]'") from None
    if not Path(options.runs).is_dir():
        print(f"the folder {options.runs} does not exist yet; runs are shown once it does", flush=True)
    chat = guard = None
    if default is not None:
        from adagrpo_ray.viewer.chat_page import ChatPage
        from adagrpo_ray.viewer.store import Store

        chat = ChatPage(options.runs, default, Store(state_folder()))
    port = listening.getsockname()[1]
    hosts = None if password is not None else [options.host, "localhost", "127.0.0.1", "[::1]"]
    app = make_app(options.runs, chat, password, hosts)
    if chat is not None:
        guard = ChildGuard()
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"open http://{host}:{port} (Ctrl-C ends it)", flush=True)
    # The server replaces these handlers while it runs, and raises the signals that it received again at its end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, when_ended)
    asyncio.run(serve(app, listening, chat))
    print("ended", flush=True)
    if chat is not None and chat.starting:
        os._exit(0)  # only the guard can end an engine that is starting
    if guard is not None:
        guard.dismiss()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return ended(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
