"""The images of wrong predictions: those of the dataset, and none else."""

from PIL import Image

from masp.report.mistakes import image_of
from masp.report.page import write_report
from masp.results.ledger_file import Ledger
from masp.results.ledger_format import Record
from tests.unit.report.test_page import HOSTILE, Page, make_run


def test_a_record_cannot_lead_out_of_the_dataset(tmp_path):
    run = make_run(tmp_path, with_images=False)
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    with Ledger(run / "evaluate" / "ledger", "rank-0", {"split": "test"}) as ledger:
        for key in ("test/%2E%2E/%2E%2E/secret%2Epng", "%2E%2E/secret%2Epng", "no key"):
            ledger.append(Record(key, HOSTILE[0], None, text="x"))
    page = Page(write_report(run))
    assert "secret.png" in page.text and not any(tag == "img" for tag, _ in page.tags)


def test_a_name_that_no_file_system_takes_is_no_image(tmp_path):
    assert image_of("test/" + "x" * 5000, tmp_path) == ("test/" + "x" * 5000, None)
