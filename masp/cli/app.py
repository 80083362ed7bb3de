"""`masp app`: a local page that shows what a trained run makes of an image, and why."""

from __future__ import annotations

import argparse
import logging

from masp.cli.parser import RUN_HELP, Commands, add_command
from masp.cli.serve import add_server_options, settings_of, until_stopped
from masp.cli.settings import separate_settings
from masp.errors import InputError

LOG = logging.getLogger(__name__)

_DETAILS = """\
Needs the extra: pip install 'masp[app]'. Drop an image on the page: its category, the aspects with their answers,
what each did for the decision and where it looked. The page also shows the mistakes of the run's evaluation. Two runs
are shown side by side; if they were trained around the same VLM, it is loaded once. Only this machine can connect,
unless --host opens it wider: then the address that is printed holds a token. docs/serving.md

  masp app outputs/mine --open
  masp app outputs/mine outputs/other
  masp app outputs/mine engine.device=cpu extract.device=cpu"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "app", "show in the browser what a trained run makes of an image, and why", _DETAILS)
    parser.add_argument("run_dir", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "overrides", nargs="*", metavar="OTHER", help="another RUN to compare with; `key=value` sets a setting of both"
    )
    parser.add_argument("--open", action="store_true", help="also open the page in the browser")
    add_server_options(parser, port=8001, time_limit_s=300)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until stopped.

    Raises:
        InputError: The run does not exist, a setting is not valid, the port is in use, or the extra is not installed.
    """
    return until_stopped(lambda: _serve(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    from masp.inference.serving.settings import bind, need_extra

    need_extra()
    from masp.inference.source import config_of

    others, overrides = separate_settings(arguments.overrides)
    if len(others) > 1:
        raise InputError(f"{len(others) + 1} runs: the page shows one, or compares two")
    configs = {source: config_of(source, settings=overrides) for source in (arguments.run_dir, *others)}
    settings = settings_of(arguments, configs[arguments.run_dir].evaluate.batch_size)
    taken = bind(settings)
    from masp.inference.model import Model
    from masp.inference.serving.page import AppPage
    from masp.inference.serving.server import run_server

    models = {source: Model(config) for source, config in configs.items()}
    for note in dict.fromkeys(note for model in models.values() for note in model.notes):
        LOG.info("%s", note)
    run_server(models, settings, taken, lambda app, service: AppPage(service).add(app), arguments.open)
    return 0
