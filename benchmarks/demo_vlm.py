"""Measures the demo world's tiny VLM on unseen images, and on captions that state the aspects.

    python benchmarks/demo_vlm.py [--vlm masp/demo/tiny_vlm/weights] [--pictures 1500] [--captions 2000]

Prints the accuracy for each aspect on images, and the accuracy for the emotion when the aspects are given as text.
"""

import argparse
from pathlib import Path


def main() -> None:
    from masp.demo.tiny_vlm import VLM_DIR

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", type=Path, default=VLM_DIR)
    parser.add_argument("--questions", default="configs/questions.yaml")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--captions", type=int, default=2000)
    args = parser.parse_args()

    from masp.data.questions import load_questions
    from masp.demo.tiny_vlm.evaluate import aspect_accuracy, caption_accuracy, load_demo_vlm
    from masp.demo.world.factors import best_possible_accuracy

    model, tokenizer = load_demo_vlm(args.vlm)
    questions = load_questions(args.questions)
    for aspect, accuracy in aspect_accuracy(model, tokenizer, questions, args.pictures).items():
        print(f"{aspect:18} {accuracy:.3f}")
    reached, best = caption_accuracy(model, tokenizer, questions, args.captions)
    print(f"emotion, aspects given as text: {reached:.3f} of {best:.3f}, {reached / best:.3f} of the best possible")
    print(f"best possible accuracy, by enumeration: {best_possible_accuracy():.4f}")


if __name__ == "__main__":
    main()
