"""What an evaluation of emotions notes before it scores; the rest is tested with processes (tests/pipeline)."""

from masp.config import load_config
from masp.demo.tiny_vlm import VLM_DIR
from masp.evaluation.emotions import length_notes


def test_answers_that_cannot_win_without_an_end_token_are_noted(repository):
    config = load_config(repository / "configs/demo.yaml", [f"vlm.path={VLM_DIR}"])
    answers = ("beach", "beach amusement", "alley")
    (note,) = length_notes(config, "released", answers)
    assert "'beach amusement' never scores above its beginning, 'beach'" in note
    assert length_notes(config, "after_image", answers) == length_notes(config, "released", answers[::2]) == []
    config.evaluate.scoring = "generate"
    assert length_notes(config, "released", answers) == []
