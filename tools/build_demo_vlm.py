"""Build the demo world's tiny VLM from scratch.

    python tools/build_demo_vlm.py --out DIR

The language model is trained on text in one process and the vision encoder on images in another; then both are trained
together. The weights of each finished phase are kept in DIR/phases, and a second call resumes after the last finished
phase. Phases that were trained with other arguments or other code are refused.
"""

import argparse
import multiprocessing
import time
from hashlib import blake2b
from pathlib import Path

HALVES = (("language", "doubts"), ("sight",))
LAST = "together"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the VLM to")
    parser.add_argument("--questions", default="configs/questions.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads per process; affects the last bits")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all steps and images: below 1 for a trial")
    args = parser.parse_args()
    started = time.monotonic()
    (args.out / "phases").mkdir(parents=True, exist_ok=True)
    halves = [multiprocessing.get_context("spawn").Process(target=learn, args=(args, *names)) for names in HALVES]
    for half in halves:
        half.start()
    for half in halves:
        half.join()
    if any(half.exitcode for half in halves):
        raise SystemExit(1)
    learn(args, LAST)
    print(f"wrote {args.out} in {(time.monotonic() - started) / 60:.0f} minutes")


def learn(args: argparse.Namespace, *phases: str) -> None:
    """Train the phases of one half, or the last phase, unless they are finished already."""
    import torch
    from safetensors.torch import load_file, save_file

    from masp.data.questions import load_questions
    from masp.demo.tiny_vlm.geometry import make_louder
    from masp.demo.tiny_vlm.image_pool import draw_pool
    from masp.demo.tiny_vlm.model import save_model
    from masp.demo.tiny_vlm.pretrain import ImagesBySize, Plan, Trainer

    torch.set_num_threads(args.threads)
    plan = Plan().scaled(args.scale)
    trainer = Trainer(load_questions(args.questions), args.seed, _report(args))
    directory, origin = args.out / "phases", _origin(args)
    if phases == (LAST,):
        for names in HALVES:
            trainer.load(load_file(directory / f"{names[-1]}.safetensors"))
    for phase in phases:
        path = directory / f"{phase}.safetensors"
        if not path.exists():
            train = getattr(trainer, f"learn_{phase}")
            if phase in HALVES[0]:
                train(plan)
                trained = trainer.language_state()
            else:
                drawn = draw_pool(plan.num_images, report=lambda *n: trainer.report("drawing", *n))
                train(plan, ImagesBySize(drawn))
                trained = trainer.sight_state()
            partial = path.with_name(f".{path.name}.partial")
            save_file(trained, partial, origin)
            partial.rename(path)
        _require(path, origin)
        trainer.load(load_file(path))
    if phases == (LAST,):
        make_louder(trainer.model, trainer.geometry, trainer.tokenizer)
        save_model(trainer.model, trainer.tokenizer, args.out)


def _origin(args: argparse.Namespace) -> dict[str, str]:
    """What the weights of a phase depend on: the arguments, and the code that trains them."""
    import masp.demo.tiny_vlm

    sources = [*sorted(Path(masp.demo.tiny_vlm.__file__).parent.glob("*.py")), Path(args.questions)]
    code = blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8).hexdigest()
    return {"seed": str(args.seed), "scale": str(args.scale), "code": code}


def _require(path: Path, origin: dict[str, str]) -> None:
    """Exit with an error if a phase was trained with other arguments or other code."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found = file.metadata() or {}
    for key, value in origin.items():
        if found.get(key) != value:
            raise SystemExit(f"error: {path}: {key} is {found.get(key)}, not {value}; use another --out or delete it")


def _report(args: argparse.Namespace):
    started: dict[str, float] = {}

    def report(phase: str, step: int, total: int, figures: dict | None = None) -> None:
        first = started.setdefault(phase, time.monotonic())
        if step % (2500 if phase == "drawing" else 100) and step != total:
            return
        left = (time.monotonic() - first) * (total - step) / max(1, step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in (figures or {}).items())
        print(f"{phase:9} {step:6}/{total}  {shown}  {left / 60:.1f} min left in this phase", flush=True)

    return report


if __name__ == "__main__":
    main()
