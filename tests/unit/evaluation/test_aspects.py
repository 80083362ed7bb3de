"""Which answers of stage 1 are compared, and how long the others may be."""

from masp.config import Aspect, load_aspects
from masp.data.answer_table import AnswerTable
from masp.demo.tiny_vlm import VLM_DIR
from masp.evaluation.aspects import MAX_CLOSED, closed_answers, num_tokens_of_longest
from masp.evaluation.feed import digest_of_rows
from masp.files.sealed import digest_of
from masp.vlm.prompt import load_prompt


def test_which_aspects_are_closed():
    aspects = load_aspects()
    assert closed_answers(aspects["brightness"], {"low"}) == ("very low", "low", "moderate", "high", "very high")
    assert closed_answers(aspects["object"], {"dog", "tree"}) == ()
    assert closed_answers(aspects["scene"], {"sea", "city"}) == ("city", "sea")
    assert closed_answers(aspects["scene"], {"sea"}) == ()  # its vocabulary has hundreds
    assert closed_answers(aspects["scene"], {str(i) for i in range(MAX_CLOSED + 1)}) == ()


def test_a_vocabulary_matters_where_the_dataset_says_no_more():
    weather = Aspect("weather", "text", ("Q",), ("rain", "fog"), None, "likelihood", None)
    assert closed_answers(weather, {"rain"}) == ("fog", "rain")
    assert closed_answers(weather, {"hail"}) == ("fog", "hail", "rain")
    assert closed_answers(weather, {"hail", "rain"}) == ("hail", "rain")  # what the modules can have learned
    assert closed_answers(weather, set()) == ()  # no image is asked
    open_one = Aspect("mood", "text", ("Q",), (), None, "generate", None)
    assert closed_answers(open_one, {"calm"}) == () and closed_answers(open_one, {"calm", "wild"}) == ("calm", "wild")


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
