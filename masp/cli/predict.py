"""`masp predict`: the target of images, printed or in a file, and the page that shows where the aspects look."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from masp.cli.parser import RUN_HELP, Commands, add_command, add_local_rank
from masp.cli.settings import separate_settings
from masp.errors import InputError
from masp.runtime.log import say, show

if TYPE_CHECKING:  # they import torch, and `masp --help` does without
    from masp.inference.batch.image_list import ImageList
    from masp.inference.model import Model, Prediction
    from masp.report.attention import PageEntry
    from masp.results.explanations.explanation import Explanation

LOG = logging.getLogger(__name__)

_DETAILS = """\
INPUT is any mixture of image files, directories (searched with all below them), quoted patterns, tars, parquet and
arrow files, and `-` for paths on standard input. What is named twice is predicted once.

Without --output, results are printed. With it, they go to a CSV, JSON lines or parquet file; such a job can be killed
at any time and goes on with the same command, and ranks of a launcher and elements of a Slurm array share it.
docs/predicting.md

  masp predict --model outputs/mine photo.jpg
  masp predict --model outputs/mine photo.jpg --explain
  masp predict --model outputs/mine photo.jpg --attention where.html
  masp predict --model outputs/mine photos --output emotions.csv
  masp predict --model outputs/mine 'photos/**/*.jpg' shards/*.tar --output emotions.parquet --explain
  find photos -name '*.jpg' -print0 | masp predict --model outputs/mine -0 - --output emotions.jsonl
  torchrun --nproc-per-node 8 -m masp predict --model outputs/mine photos --output emotions.parquet
  masp predict --config configs/train.yaml photo.jpg checkpoint.soft_prompt=none    without the soft prompt

evaluate.batch_size images are scored at once, and evaluate.num_workers processes decode those to come."""
_MAX_NAMED = 10
"""Images that cannot be read that an error names."""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(
        commands, "predict", "predict the emotion (or other target) of images, with probabilities", _DETAILS
    )
    parser.add_argument("images", nargs="+", metavar="INPUT", help="see above; `key=value` sets a setting")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="RUN", help=RUN_HELP)
    model.add_argument("--config", metavar="FILE", help="or the configuration of the run that trained")
    parser.add_argument("--output", metavar="FILE", help="write to this .csv, .jsonl or .parquet file")
    parser.add_argument("--overwrite", action="store_true", help="predict again where the output is there already")
    parser.add_argument("--json", action="store_true", help="print one JSON line per image")
    parser.add_argument("--explain", action="store_true", help="also what each aspect answers and did for the decision")
    parser.add_argument("--attention", metavar="FILE", help="also an HTML page that shows where each aspect looked")
    parser.add_argument("-0", "--null", action="store_true", help="paths on standard input end with a NUL byte")
    add_local_rank(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict, and print or write.

    Raises:
        InputError: An input is missing or damaged; without --output, an image cannot be read (the others are printed
            first); nothing says what the categories are, or there are no aspect modules that could be shown.
    """
    from masp.config import load_config

    inputs, settings = separate_settings(arguments.images)
    if not inputs:
        raise InputError("no INPUT: name image files, directories, tars, parquet files, or - for standard input")
    output = _checked_output(arguments)
    if arguments.model is None:
        config = load_config(arguments.config, settings, unused=["cache.dir", "dataset.root"])
    else:
        from masp.inference.source import config_of

        config = config_of(arguments.model, settings=settings)
    if output is not None and _is_done(output, arguments.overwrite):
        return 0
    from masp.inference.batch.inputs import list_images

    stdin = None if sys.stdin is None else sys.stdin.buffer
    images = list_images(inputs, (config.dataset.columns or {}).get("image"), stdin, arguments.null)
    from masp.inference.model import Model

    model = Model(config)
    for note in model.notes:
        LOG.info("%s", note)
    for option, given in (("--attention", arguments.attention), ("--explain", arguments.explain)):
        if given and not model.aspects:
            raise InputError(f"{option}: this run has no aspect modules to show")
    if output is not None:
        from masp.inference.batch.run import predict_to_file

        predict_to_file(model, images, output, explain=arguments.explain)
    else:
        _print(arguments, model, images)
    return 0


def _checked_output(arguments: argparse.Namespace) -> Path | None:
    """The output; None if results are printed.

    Raises:
        InputError: Options that do not go together, or an extension that is not written.
    """
    if arguments.output is None:
        if arguments.overwrite:
            raise InputError("--overwrite: only with --output")
        return None
    if arguments.json or arguments.attention:
        option, instead = ("--json", "FILE.jsonl has the same") if arguments.json else ("--attention", "leave it out")
        raise InputError(f"{option}: not with --output; {instead}")
    from masp.distributed.ranks import read_share
    from masp.inference.batch.formats import opener_of

    output = Path(arguments.output)
    opener_of(output)
    if arguments.overwrite and read_share().size > 1:
        raise InputError("--overwrite: not on several ranks, of which a late one would begin again; delete the output")
    return output


def _is_done(output: Path, overwrite: bool) -> bool:
    """Whether the output is there and is to be left alone; says so."""
    from masp.inference.batch.parts import is_complete

    if overwrite or not is_complete(output):
        return False
    say(f"predictions: {output} is there already; --overwrite predicts again")
    return True


def _print(arguments: argparse.Namespace, model: Model, images: ImageList) -> None:
    """Predict images and print what is found, as soon as it is.

    Raises:
        InputError: One cannot be read.
    """
    from masp.data.images import load_image
    from masp.data.questions import EMOTION
    from masp.distributed.ranks import read_ranks
    from masp.inference.batch.run import outcomes
    from masp.report.attention import page_entry, write_page
    from masp.vlm.preprocessor import load_token_grid

    config = model.config
    if read_ranks().size > 1 and not config.evaluate.partition_vlm:
        raise InputError("predict: every process would print all images; give --output FILE, whose rows they share")
    if arguments.attention:
        load_token_grid(config.vlm, f"--attention {arguments.attention}")
    target = None if config.target.name == EMOTION else config.target.name
    broken: list[str] = []
    num_broken = 0
    entries: list[PageEntry] = []
    with model.sharing_vlm() as answers:
        if answers:
            model.load(arguments.explain)
        batches = outcomes(model, images, explain=arguments.explain) if answers else ()
        for each in itertools.chain.from_iterable(batches):
            found = each.prediction
            if found is None or each.request is None:
                num_broken += 1
                if num_broken <= _MAX_NAMED:
                    broken.append(f"{each.image.name} ({each.reason})")
                continue
            if arguments.attention:
                image = load_image(each.image.image, config.vlm.max_side, transparency=config.vlm.transparency)
                (maps,) = model.scorer.attention([each.request])
                seen = dict(zip(model.aspects, maps, strict=True))
                entries.append(page_entry(found.image, image, found.label, found.probabilities, seen))
            why = each.explanation
            show(*([_as_json(found, target, why)] if arguments.json else _as_text(found, target, why)))
    if entries:
        show(f"attention: {write_page(arguments.attention, entries)}", to=sys.stderr)
    if broken:
        more = f", … ({num_broken - _MAX_NAMED} more)" if num_broken > _MAX_NAMED else ""
        raise InputError(f"{num_broken} of {len(images)} images cannot be read: {', '.join(broken)}{more}")


def _as_json(found: Prediction, target: str | None, why: Explanation | None) -> str:
    of_target = {} if target is None else {"target": target}
    line = {"image": found.image, **of_target, "prediction": found.label, "probabilities": found.probabilities}
    line["log_likelihoods"] = found.log_likelihoods
    return json.dumps(line | ({} if why is None else why.to_json()))


def _as_text(found: Prediction, target: str | None, why: Explanation | None) -> list[str]:
    ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])
    shares = "  ".join(f"{name} {share:.3f}" for name, share in ranked)
    of_target = "" if target is None else f"{target} "
    return [f"{found.image}: {of_target}{found.label}", f"    {shares}", *([] if why is None else _explained(why))]


def _explained(why: Explanation) -> list[str]:
    """The sentence, then a line per aspect."""
    lines = [f"    {why.sentence}"]
    for aspect in why.aspects:
        change = "" if aspect.contribution is None else f"{aspect.contribution:+.2f}"
        lines.append(
            f"      {aspect.aspect.replace('_', ' '):<20} {change:>7}  {aspect.answer} ({aspect.probability:.2f})"
        )
    together = [("all aspects", why.all_aspects), ("interaction of them", why.interaction)]
    together += [("vision features", why.vision_features)]
    lines += [f"      {name:<20} {value:>+7.2f}" for name, value in together if value is not None]
    return lines
