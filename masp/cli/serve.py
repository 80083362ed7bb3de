"""`masp serve`: answers requests about images over HTTP, with a trained run."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from masp.cli.ending import is_stop
from masp.cli.parser import RUN_HELP, Commands, Parser, add_command
from masp.runtime.log import say
from masp.runtime.stop import stop_no_more

if TYPE_CHECKING:
    from masp.inference.serving.settings import ServerSettings

LOG = logging.getLogger(__name__)

_DETAILS = """\
Needs the extra: pip install 'masp[serve]'. Images that come in at the same time are scored together; SIGTERM or Ctrl-C
finishes what is in work. Only this machine can connect, unless --host opens it wider: then every request needs a token,
which is printed, or taken from MASP_TOKEN. docs/serving.md

  masp serve outputs/mine
  curl -F image=@photo.jpg http://127.0.0.1:8000/predict
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?explain=true'
  masp serve outputs/mine --host 0.0.0.0 --port 9000 engine.precision=bf16"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "serve", "answer requests about images over HTTP, with a trained run", _DETAILS)
    parser.add_argument("run_dir", metavar="RUN", help=RUN_HELP)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single settings, such as engine.device=cpu")
    add_server_options(parser, port=8000)
    parser.set_defaults(run=run)


def add_server_options(parser: Parser, port: int, time_limit_s: float = 60) -> None:
    """Add what `masp serve` and `masp app` have in common."""
    parser.add_argument("--port", type=int, default=port, metavar="N", help=f"default {port}; 0 takes any that is free")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1: this machine only")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images scored at once, at most (default evaluate.batch_size)"
    )
    parser.add_argument(
        "--max-wait-ms", type=float, default=5, metavar="MS",
        help="how long an image waits for others to be scored with (default 5)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=int, metavar="N",
        help="images in work or waiting; beyond it requests get 503 (default 128, or 4 batches)",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=float, default=time_limit_s, metavar="S",
        help=f"seconds that a request may take (default {time_limit_s:g}); then it gets 504",
    )  # fmt: skip
    parser.add_argument(
        "--max-body-mb", type=float, default=32, metavar="MB", help="size of a request, at most (default 32)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped.

    Raises:
        InputError: The run does not exist, a setting is not valid, the port is in use, or the extra is not installed.
    """
    return until_stopped(lambda: _serve(arguments))


def until_stopped(serve: Callable[[], int]) -> int:
    """Run a server. Being stopped is its normal end, even before it listens: no unfinished work is left behind.

    Args:
        serve: Serves; returns its exit code.
    """
    try:
        return serve()
    except BaseException as error:
        if not is_stop(error):
            raise
        stop_no_more()
        say("stopped before it listened")
        return 0


def _serve(arguments: argparse.Namespace) -> int:
    from masp.inference.serving.settings import bind, need_extra

    need_extra()
    from masp.inference.source import config_of

    config = config_of(arguments.run_dir, settings=arguments.overrides)
    settings = settings_of(arguments, config.evaluate.batch_size)
    taken = bind(settings)
    from masp.inference.model import Model
    from masp.inference.serving.server import run_server

    model = Model(config)
    for note in model.notes:
        LOG.info("%s", note)
    run_server({arguments.run_dir: model}, settings, taken)
    return 0


def settings_of(arguments: argparse.Namespace, batch_size: int) -> ServerSettings:
    """How to listen, from the command line; a batch is as large as given there, else as in the run.

    Raises:
        InputError: An option is not valid.
    """
    from masp.inference.serving.settings import ServerSettings, token_for

    size = batch_size if arguments.batch_size is None else arguments.batch_size
    return ServerSettings(
        arguments.host,
        arguments.port,
        size,
        arguments.max_wait_ms,
        max(128, 4 * size) if arguments.queue is None else arguments.queue,
        arguments.time_limit,
        arguments.max_body_mb,
        *token_for(arguments.host),
    )
