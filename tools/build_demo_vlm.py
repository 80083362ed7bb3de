"""Rebuild the demo world's tiny VLM from nothing: python tools/build_demo_vlm.py --out DIR."""

import argparse
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the VLM to")
    parser.add_argument("--questions", default="configs/questions.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch; another number moves the last bits")
    parser.add_argument("--processes", type=int, default=2, help="that draw the pictures")
    parser.add_argument("--scale", type=float, default=1.0, help="times all steps and pictures: below 1 for a trial")
    args = parser.parse_args()

    import torch

    from masp.data.demo.model import save_model
    from masp.data.demo.pool import draw_pool
    from masp.data.demo.pretrain import Pictures, Plan, Trainer
    from masp.data.questions import load_questions

    torch.set_num_threads(args.threads)
    plan = Plan().scaled(args.scale)
    begun = time.monotonic()
    started: dict[str, float] = {}

    def report(phase: str, step: int, total: int, figures: dict | None = None) -> None:
        first = started.setdefault(phase, time.monotonic())
        if step % 100 and step != total:
            return
        left = (time.monotonic() - first) * (total - step) / max(1, step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in (figures or {}).items())
        print(f"{phase:9} {step:6}/{total}  {shown}  {left / 60:.1f} min left in this phase", flush=True)

    trainer = Trainer(load_questions(args.questions), args.seed, report)
    trainer.learn_words(plan)
    trainer.learn_places(plan)
    drawn = draw_pool(plan.num_pictures, processes=args.processes, report=lambda *n: report("drawing", *n))
    pictures = Pictures(drawn)
    trainer.learn_sight(plan, pictures)
    trainer.learn_together(plan, pictures)
    save_model(trainer.model, trainer.tokenizer, args.out)
    print(f"wrote {args.out} in {(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
