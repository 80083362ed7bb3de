"""An output of the model that is not finite is an error where it arises."""

import pytest
import torch

from masp.errors import InputError
from masp.evaluation.scorers import finite_for
from masp.models.generation import generate
from masp.models.likelihood import NotFiniteError, check_finite, score_categories
from masp.models.sequence import build_sequence, make_batch
from masp.vlm.features import Features
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt
from tests.tiny import layout_of, make_vlm


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_are_named(value):
    with pytest.raises(NotFiniteError) as error:
        check_finite(torch.tensor([[0.0, 1.0], [value, 0.0], [2.0, 3.0]]))
    assert error.value.rows == (1,)


@pytest.mark.parametrize(
    ("dtype", "remedy"), [(torch.float16, "use engine.precision=bf16 or fp32"), (torch.bfloat16, "precision=fp32")]
)
def test_the_sample_the_dtype_and_the_remedy(dtype, remedy):
    with pytest.raises(InputError, match=f"sample b is not finite in .*{remedy}"), finite_for(["a", "b"], dtype):
        raise NotFiniteError([1])


class Overflowing:
    """A language model whose hidden states overflow, as fp16 does."""

    num_logits = None

    def __init__(self, language):
        self.language = language

    def hidden(self, batch, cache=None):
        mask = batch.suffix.mask
        embeds = torch.zeros(*mask.shape, self.language.hidden_size)
        found = self.language(embeds, mask, batch.suffix.positions, cache)
        return found * torch.tensor(float("inf"))


def test_likelihood_and_generation(tmp_path):
    vlm = str(make_vlm(tmp_path / "vlm"))
    prompt, model = load_prompt(vlm), Overflowing(load_language_half(vlm))
    sequence = build_sequence(
        prompt, "Q", None, num_aspect_tokens=0, image=layout_of((1, 2, 2)), num_soft_tokens=0, layout="after_image"
    )
    batch = make_batch(prompt, [sequence], [Features(torch.zeros(1, 32))], row_image=range(1), frozen_prefix=False)
    with pytest.raises(NotFiniteError):
        score_categories(model, batch, [prompt.answer("joy"), prompt.answer("fear")], prompt.end)
    with pytest.raises(NotFiniteError):
        generate(model, batch, 4, prompt.stop)
