"""The images of wrong predictions: those of the dataset, and none else."""

import json

from PIL import Image

from masp.report.page import write_report
from masp.results.ledger_format import Record
from masp.results.records import FILE, read_records_file, write_target_records
from tests.unit.report.test_page import HOSTILE, Page, make_run


def test_a_record_cannot_lead_out_of_the_dataset(tmp_path):
    run = make_run(tmp_path, with_images=False)
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    keys = ("test/%2E%2E/%2E%2E/secret%2Epng", "%2E%2E/secret%2Epng", "no key")
    records = [Record(key, HOSTILE[0], None, text="x") for key in keys]
    write_target_records(run / "evaluate" / FILE, records, HOSTILE, (), ())
    page = Page(write_report(run))
    assert "secret.png" in page.text and not any(tag == "img" for tag, _ in page.tags)


def test_records_of_another_evaluation_are_not_shown(tmp_path):
    run = make_run(tmp_path, with_images=False)
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    metrics["lineage"] = {"records": read_records_file(run / "evaluate" / FILE).digest}
    (run / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    assert "not the file that metrics.json" not in Page(write_report(run)).text
    write_target_records(run / "evaluate" / FILE, [Record("test/a", HOSTILE[0], None, text="x")], HOSTILE, (), ())
    assert "is not the file that metrics.json was written with" in Page(write_report(run)).text
