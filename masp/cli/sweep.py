"""`masp sweep`: many soft prompts, trained together where they share what comes before them."""

from __future__ import annotations

import argparse

from masp.cli.parser import Commands, add_command
from masp.cli.settings import add_settings

_DETAILS = """\
Every list is an axis, and every combination of axes a member:
  masp sweep --config configs/train.yaml 'stage2.learning_rate=[1e-3,1e-2]' 'seed=[1,2]'
Numbers are drawn from ranges with log(A,B), uniform(A,B) or int(A,B):
  masp sweep --config configs/train.yaml 'stage2.learning_rate=log(1e-4,1e-1)' --num 16
A file has one member per line, as key=value key=value:
  masp sweep --config configs/train.yaml --members members.txt

Members that differ only in what comes after the image (learning rate, seed, length and start of the soft prompt,
wording of the question) are trained together, behind one pass of the frozen prefix; each is the run that it would have
been alone with the same order_seed. Aspect modules are trained once. The best on the validation split is scored on the
test split. Calling the same command again goes on; members may be added.

The first lines say which members are trained together, what that costs and what single runs would; --list stops there:
  masp sweep --config configs/train.yaml 'seed=[1,2,3,4]' --list --tflops 312
With --halving the worst are dropped on the way, of all groups, by the loss on held-out images:
  masp sweep --config configs/train.yaml 'stage2.learning_rate=log(1e-4,1e-1)' --num 16 --halving
trains 16 members for 1/16 of their epochs, the better 8 up to 1/8, 4 up to 1/4, 2 up to 1/2 and one to its end.
How accuracy grows with the number of training images, as a table and a plot:
  masp sweep --config configs/train.yaml 'dataset.fraction=[0.1,0.3,1]' 'seed=[1,2,3]'
docs/sweeps.md"""


def _eta(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        hint = "; give --halving 2 before settings" if "=" in text else ""
        raise argparse.ArgumentTypeError(f"must be an integer of 2 or more, not {text!r}{hint}") from None


def add_members(parser: argparse.ArgumentParser) -> None:
    """Add what says which members a sweep has, and how much is done about them."""
    parser.add_argument("--members", metavar="FILE", help="a member per line, instead of axes")
    parser.add_argument("--num", type=int, metavar="N", help="draws from the ranges")
    parser.add_argument("--random", action="store_true", help="draw at random instead of by Sobol's sequence")
    parser.add_argument("--test", choices=("best", "all", "none"), default="best", help="whose test score to compute")
    parser.add_argument(
        "--halving",
        type=_eta,
        nargs="?",
        const=2,
        metavar="ETA",
        help="successive halving: keep one of ETA members at each rung (2 if ETA is not given)",
    )
    parser.add_argument("--tflops", type=float, metavar="X", help="peak of one GPU, for the expected hours")
    parser.add_argument(
        "--utilization", type=float, metavar="U", help="share of the peak that is reached (default 0.4)"
    )
    parser.add_argument("--rate-from", metavar="RUN_DIR", help="take the speed from an earlier run's logs")


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "sweep", "many trainings of the soft prompt for the price of a few", _DETAILS)
    add_settings(parser)
    add_members(parser)
    parser.add_argument("--list", action="store_true", help="only print members, groups and cost")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep, or say what it would be.

    Raises:
        InputError: What is to be varied is not valid.
    """
    from masp.errors import InputError
    from masp.runtime.log import show
    from masp.sweep.axes import asked_members

    given = arguments.members, arguments.num, arguments.random
    asked, members = asked_members(arguments.config, arguments.overrides, *given)
    if arguments.halving is not None and arguments.halving < 2:
        raise InputError(f"--halving {arguments.halving}: must be 2 or more")
    from masp.demo.data import draw_demo_data
    from masp.sweep.cost import plan_lines
    from masp.sweep.members import open_sweep
    from masp.sweep.run import run_sweep

    sweep = open_sweep(arguments.config, asked, members, arguments.test)
    if not arguments.list:
        draw_demo_data(sweep.base)
    plan = plan_lines(sweep, arguments.halving, arguments.tflops, arguments.utilization, arguments.rate_from)
    show(*(member.name for member in members if arguments.list), *plan)
    if not arguments.list:
        run_sweep(sweep, arguments.halving)
    return 0
