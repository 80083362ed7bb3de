"""Which answers of stage 1 are compared, and how long the others may be."""

from masp.data.answer_table import AnswerTable
from masp.data.answers import LEVELS
from masp.demo.tiny_vlm import VLM_DIR
from masp.evaluation.aspects import MAX_CLOSED, closed_answers, num_tokens_of_longest
from masp.evaluation.feed import digest_of_rows
from masp.files.sealed import digest_of
from masp.vlm.prompt import load_prompt


def test_which_aspects_are_closed():
    assert closed_answers("brightness", {"low"}) == LEVELS
    assert closed_answers("object", {"dog", "tree"}) == ()
    assert closed_answers("scene", {"sea", "city"}) == ("city", "sea")
    assert closed_answers("scene", {"sea"}) == ()  # nothing to compare it with
    assert closed_answers("scene", {str(i) for i in range(MAX_CLOSED + 1)}) == ()


def test_the_longest_answer_is_the_one_with_most_tokens():
    prompt = load_prompt(str(VLM_DIR))
    answers = {"object": ["amusement park", "candles"], "scene": ["alley"]}
    counts = {text: len(prompt.ids(text)) for text in answers["object"]}
    assert counts["candles"] > counts["amusement park"]
    assert num_tokens_of_longest(prompt, answers) == {"object": counts["candles"], "scene": len(prompt.ids("alley"))}


def test_the_digest_of_the_answers_is_that_of_their_list():
    """It is part of what a ledger is compared by: a ledger from before answers were columns goes on."""
    answers = [{"scene": f"place {n % 7}", "brightness": "low"} if n % 3 else {"object": "Ä"} for n in range(9000)]
    rows = ([str(n), *sorted(found.items())] for n, found in enumerate(AnswerTable.of(answers).rows()))
    assert digest_of_rows(rows) == digest_of([[str(n), *sorted(found.items())] for n, found in enumerate(answers)])
    assert digest_of_rows([]) == digest_of([])
