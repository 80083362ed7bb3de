"""The methods paragraph says what the files say, all of it and nothing else, in LaTeX and in Markdown."""

import copy
import re
from dataclasses import replace

import pytest

from masp.report.content import gather
from masp.report.paper.facts import gather_facts
from masp.report.paper.methods import as_latex, as_markdown, digest_table, methods
from tests.unit.report.paper.runs import INJECTION, LINEAGE, check_latex, explain, make_cited_run


def paragraph(run) -> str:
    return as_markdown(methods(gather_facts(gather(run))))


def test_every_setting_and_digest_is_said(tmp_path):
    text = paragraph(make_cited_run(tmp_path))
    for expected in (
        "vision-language model Qwen/Qwen2-VL-7B-Instruct (architecture qwen2\\_vl), revision `ffffffffffff`, with "
        "weights of SHA-256 `a1a1a1a1a1a1`.",
        "computed once per image and cached in int8.",
        "The encoder ran in bf16 on NVIDIA\\_X with sdpa attention.",
        "at most 1,024 pixels on the longer side.",
        "at 3,136 or more and 12,845,056 or fewer pixels.",
        "Transparent pixels were pasted on white.",
        "The language model ran in bf16.",
        "It has 94,481 training images, 17,711 test images.",
        "2 images of it could not be read and took no part.",
        "The aspects were scene, a\\_b, each with a module of 5 query vectors.",
        "In stage 1, the aspect modules were trained with AdamW for 3 epochs (35,401 steps) in batches of 8 images at "
        "a learning rate of 1e-05, which rose linearly over the first 3.0 % of the steps and then fell linearly to "
        "zero, a weight decay of 0.01, gradients not clipped, seed 3407, in bf16.",
        "In stage 2, the soft prompt was trained with AdamW as 32 vectors for 1 epoch at a learning rate of 2.5 and "
        "then fell linearly to zero by the rule of transformers, gradients clipped to a norm of 1, seed 7.",
        "The soft prompt followed the image.",
        "The model was asked on the test split: “Which emotion is it, 100 % sure?”\n",
        "The model was right on 0 of 5 images: an accuracy of 0.0 % (95 % interval 0.0 to 43.4 %, Wilson)",
        "The software was MASP 9.8.7 on Python 3.11.1 with PyTorch 2.99.",
        "The SHA-256 digest of the records of all predictions is `181818181818`.",
    ):
        assert expected in text, expected
    for absent in ("None", "null", "validation image", "temperature", "live"):
        assert absent not in text, absent


def test_a_number_of_the_files_is_what_the_paragraph_says(tmp_path):
    lineage = copy.deepcopy(LINEAGE)
    lineage["aspect"]["settings"]["stage1.learning_rate"] = 0.0037
    lineage["dataset"]["splits"]["val"] = {"num_images": 1, "num_quarantined": 0}
    lineage["soft_prompt"]["settings"]["stage2.num_soft_prompt_tokens"] = 1
    found = paragraph(make_cited_run(tmp_path, lineage, accuracy=0.61239, accuracy_ci95=[0.6, 0.625]))
    assert "at a learning rate of 0.0037" in found and "17,711 test images" in found and "as 1 vector " in found
    assert ", 1 validation image, 17,711 test images." in found
    assert "an accuracy of 61.2 % (95 % interval 60.0 to 62.5 %, Wilson)" in found


def test_a_subset_of_the_training_images_is_said_of_the_part_that_was_trained_on_it(tmp_path):
    lineage = copy.deepcopy(LINEAGE)
    counts = {"num_images": 4724, "num_in_split": 94481, "min_per_category": 301, "digest": "ab" * 32}
    lineage["soft_prompt"]["settings"] |= {"dataset.fraction": 0.05, "dataset.subset": counts}
    text = paragraph(make_cited_run(tmp_path, lineage))
    said = "on 4,724 of the 94,481 training images, 301 or more per category, chosen by a hash of their keys,"
    assert f"the soft prompt was trained with AdamW as 32 vectors {said} for 1 epoch at a learning rate" in text
    assert text.count("chosen by a hash") == 1 and "It has 94,481 training images" in text


PARTS = [
    ("vlm", "revision"), ("vlm", "path"), ("features",), ("dataset",), ("aspect",), ("soft_prompt",), ("software",),
    ("questions",), ("records",), ("precision",), ("aspect", "settings"), ("aspect", "settings", "stage1.num_epochs"),
]  # fmt: skip


@pytest.mark.parametrize("path", PARTS, ids=".".join)
@pytest.mark.parametrize(
    "value",
    ["gone", None, [], {}, True, 1e999, "", ["x", 1], "y" * 10**5],
    ids="gone null list object true infinite empty mixed long".split(),
)
def test_what_a_file_does_not_say_or_not_validly_is_left_out(tmp_path_factory, path, value):
    """Nothing is invented: all numbers of the shorter paragraph are in the whole one."""
    content, whole = _cached(tmp_path_factory)
    lineage = copy.deepcopy(LINEAGE)
    part = lineage
    for name in path[:-1]:
        part = part[name]
    if value == "gone":
        del part[path[-1]]
    else:
        part[path[-1]] = value
    changed = replace(content, metrics=replace(content.metrics, lineage=lineage))
    text = as_markdown(methods(gather_facts(changed)))
    # of what is short, so that a failure is readable
    assert [word for word in ("None", "null", "inf ", "{") if word in text.replace("\\{", "")] == []
    numbers = re.compile(r"[0-9][0-9.,]*")
    assert set(numbers.findall(text)) - set(numbers.findall(whole)) == set()


_CACHE = []


def _cached(factory):
    if not _CACHE:
        content = gather(make_cited_run(factory.mktemp("run")))
        _CACHE.append((content, as_markdown(methods(gather_facts(content)))))
    return _CACHE[0]


def test_without_any_lineage_there_is_little_to_say(tmp_path):
    text = paragraph(make_cited_run(tmp_path, {}))
    assert "AdamW" not in text and "software" not in text and "right on 0 of 5 images" in text


@pytest.mark.parametrize("part", [None, "aspect", "soft_prompt"])
def test_what_was_not_trained_is_said(tmp_path, part):
    lineage = LINEAGE | {"aspect": None, "soft_prompt": None} | ({part: LINEAGE[part]} if part else {})
    text = paragraph(make_cited_run(tmp_path, lineage))
    expected = {None: "Nothing was trained.", "aspect": "No soft prompt was used.",
                "soft_prompt": "No aspect modules were used."}  # fmt: skip
    assert [sentence for sentence in expected.values() if sentence in text] == [expected[part]]


def test_what_was_left_out_of_the_prompt_is_said(tmp_path):
    assert "Left out of the prompt were scene, vision\\_features.\n" in paragraph(
        make_cited_run(tmp_path, without=["scene", "vision_features"])
    )


def test_what_contributions_are_is_said_where_there_are_some(tmp_path):
    run = make_cited_run(tmp_path)
    assert "contribution" not in paragraph(run)
    explain(run)
    assert (
        "For 12 images of the 24 that were scored, the contribution of each part of the prompt was measured: the "
        "log-likelihood of the predicted category with that part minus without it, in nats, while all others stay; its "
        "means have 95 % intervals by a bootstrap over images.\n"
    ) in paragraph(run)


def test_all_of_one_image_is_explained_without_intervals(tmp_path):
    run = make_cited_run(tmp_path)
    explain(run, count=1, explained="all", num_scored=1)
    assert "For 1 image, all that were scored, the contribution" in paragraph(run)
    assert "while all others stay.\n" in paragraph(run)


def test_imported_artifacts_say_nothing_of_their_training(tmp_path):
    lineage = LINEAGE | {"soft_prompt": {"origin": "imported", "digest": "ee" * 32, "settings": {}}}
    text = paragraph(make_cited_run(tmp_path, lineage))
    assert "`eeeeeeeeeeee` is the digest of an imported file, which says nothing of its training." in text
    assert "In stage 2" not in text


def test_no_name_can_inject_latex(tmp_path):
    facts = gather_facts(gather(make_cited_run(tmp_path)))
    assert facts["dataset.name"] == INJECTION
    text = as_latex(methods(facts))
    check_latex(text)
    printed = (
        r"\textbackslash{}input\{/etc/passwd\}",
        r"\textbackslash{}write18\{id\}",
        r"\$x\textasciicircum{}2\$",
    )
    assert [part for part in printed if part not in text] == []
    assert r"$1 \times 10^{-5}$" in text and r"\texttt{a1a1a1a1a1a1}" in text
    markdown = as_markdown(methods(facts))
    assert "\\<b\\>" in markdown and "\\`code\\`" in markdown and "\u202e" not in markdown


def test_whole_digests_are_in_a_table(tmp_path):
    rows = dict(digest_table(gather_facts(gather(make_cited_run(tmp_path)))).rows)
    assert rows["weights of the VLM"] == "a1" * 32 and rows["soft prompt"] == "07" * 32 and len(rows) == 8


def test_of_several_initializations_it_is_said_that_one_was_kept(tmp_path):
    lineage = copy.deepcopy(LINEAGE)
    assert "initializations" not in paragraph(make_cited_run(tmp_path / "one", lineage))
    choice = {"scene": {"chosen": 2, "seed": 5, "step": 9, "held_out_losses": [2.0, None, 1.0]}}
    lineage["aspect"]["settings"] |= {
        "stage1.restarts": 3, "stage1.validation_size": 256, "stage1.validate_every": None,
        "kept_restarts": {"seeds": [3, 4, 5], "dropped": {"1": 4}, "aspects": choice},
    }  # fmt: skip
    assert (
        "Of 3 initializations of each aspect module, that with the lowest loss on at most 256 held-out images was kept."
    ) in paragraph(make_cited_run(tmp_path / "three", lineage))
