"""Explanations as CSV: every number as in the file, and nothing that a spreadsheet takes for a formula."""

import csv
import dataclasses

import pytest

from masp.report.explanations.tables import contributions_table, write_explanation_table
from masp.report.export import csv_text, latex_text
from tests.unit.results.explanations.test_averages import ASPECTS, CATEGORIES
from tests.unit.results.explanations.test_explanations_file import make_file


def test_a_line_per_image(tmp_path):
    content = make_file()
    first = content.images[0]
    evil = dataclasses.replace(first.aspects[0], answer="=cmd()", annotated="+x")
    images = (dataclasses.replace(first, aspects=(evil, first.aspects[1])), *content.images[1:])
    content = dataclasses.replace(content, images=images)
    path = write_explanation_table(tmp_path / "explanations.csv", content)
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == content.num_images
    assert lines[0]["answer scene"] == "'=cmd()" and lines[0]["annotated scene"] == "'+x"
    for line, image in zip(lines, content.images, strict=True):
        why = content.explanation(image)
        assert (line["sample_key"], line["label"], line["prediction"]) == (image.key, image.label, image.prediction)
        assert line["correct"] == str(int(image.label == image.prediction)) and line["explanation"] == why.sentence
        assert float(line["probability"]) == why.probability
        for aspect in why.aspects:
            assert float(line[f"contribution {aspect.aspect}"]) == aspect.contribution
            assert float(line[f"log_probability_change {aspect.aspect}"]) == aspect.log_probability_change
        total = sum(float(line[f"contribution {part}"]) for part in (*ASPECTS, "interaction"))
        assert total == pytest.approx(float(line["contribution all_aspects"]))


def test_a_row_per_mean():
    content = make_file()
    table = contributions_table(content)
    lines = list(csv.DictReader(csv_text(table).splitlines()))
    groups = {(line["images"], line["category"]) for line in lines}
    assert ("all", "") in groups and {category for _, category in groups} <= {"", *CATEGORIES}
    (scene,) = [line for line in lines if line["images"] == "all" and line["part"] == "scene"]
    mean = content.averages.signed.aspects["scene"]
    assert float(scene["mean contribution"]) == mean.mean and int(scene["num images"]) == 12
    assert (float(scene["95 % low"]), float(scene["95 % high"])) == mean.ci95
    assert float(scene["mean size"]) == content.averages.absolute.aspects["scene"].mean
    assert {line["part"] for line in lines} == {*ASPECTS, "all_aspects", "interaction", "vision_features"}
    assert latex_text(table).count("\\\\") == 1 + len(lines)
