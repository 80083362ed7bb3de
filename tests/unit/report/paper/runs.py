"""A run with a lineage, as evaluations write it, and what checks LaTeX without a LaTeX."""

import json
import re
from pathlib import Path

from masp.results.explanations.explanations_file import FILE, ExplanationsFile, write_explanations
from masp.results.metrics_file import write_metrics
from tests.unit.report.test_page import make_run
from tests.unit.results.explanations.test_explanations_file import make_file

INJECTION = "\\input{/etc/passwd}\\write18{id} $x^2$ %\n\\end{document} #1 & ~ `code` <b> \u202e \\begin{x}"
"""A name that LaTeX must print as it is."""
SETTINGS = {
    "stage": "stage1", "seed": 3407, "engine.precision": "bf16", "aspect_module.num_queries": 5, "num_steps": 35401,
    "stage1.num_epochs": 3, "stage1.learning_rate": 1e-05, "stage1.warmup_ratio": 0.03, "stage1.weight_decay": 0.01,
    "stage1.max_grad_norm": None, "stage1.global_batch_size": 8,
}  # fmt: skip
LINEAGE = {
    "vlm": {"path": "Qwen/Qwen2-VL-7B-Instruct", "revision": "f" * 40, "weights": "a1" * 32, "fingerprint": "b2" * 32},
    "dataset": {
        "name": INJECTION, "digest": "c3" * 32, "cache": "d4" * 32,
        "splits": {"train": {"num_images": 94481, "num_quarantined": 2}, "test": {"num_images": 17711,
                   "num_quarantined": 0}},
    },
    "questions": {"file": "e5" * 32, "templates": {}},
    "precision": "bf16",
    "software": {"masp": "9.8.7", "python": "3.11.1", "torch": "2.99"},
    "features": {
        "model": {"weights": "a1" * 32, "min_pixels": 3136, "max_pixels": 12845056, "max_side": 1024, "dtype": "int8",
                  "attention": "sdpa", "config.model_type": "qwen2_vl"},
        "machine": {"device": "NVIDIA_X", "encoder_dtype": "bf16", "pillow": "13.0.0"},
    },
    "aspect": {"origin": "trained", "digest": "f6" * 32, "aspects": ["scene", "a_b"], "settings": SETTINGS},
    "soft_prompt": {
        "origin": "trained", "digest": "07" * 32, "layout": "after_image",
        "settings": {"stage": "stage2", "seed": 7, "stage2.num_soft_prompt_tokens": 32, "stage2.learning_rate": 2.5,
                     "stage2.schedule": "published", "stage2.num_epochs": 1, "stage2.max_grad_norm": 1.0},
    },
    "records": "18" * 32,
}  # fmt: skip


def make_cited_run(directory: Path, lineage: dict | None = None, **more) -> Path:
    """A run whose `metrics.json` has a lineage and everything else that an evaluation writes."""
    run = make_run(directory)
    path = run / "evaluate" / "metrics.json"
    values = json.loads(path.read_text()) | {
        "dataset": INJECTION, "split": "test", "scoring": "likelihood", "source": "cache", "layout": "after_image",
        "stage": "stage2", "question": "Which emotion is it, 100 % sure?",
    }  # fmt: skip
    write_metrics(path, values | {"lineage": json.loads(json.dumps(LINEAGE if lineage is None else lineage))} | more)
    return run


def explain(run: Path, **changes) -> ExplanationsFile:
    """Add explanations to a run; returns them."""
    directory = run / "evaluate" / "explanations"
    directory.mkdir()
    content = make_file(**changes)
    write_explanations(directory / FILE, content)
    return content


COMMANDS = set(
    "documentclass usepackage ifPDFTeX else fi newcommand fitted begin end input section subsection centering caption "
    "label "
    "includegraphics linewidth textheight clearpage toprule midrule bottomrule texttt times textbackslash "
    "textasciitilde textasciicircum textless textgreater textbar textquotedbl textquotesingle textasciigrave".split()
)
"""All commands that our files may hold."""


def check_latex(text: str) -> None:
    """Assert that braces and environments are balanced, that every command is one of ours, and that nothing that LaTeX
    gives a meaning to stands for itself."""
    lines = [re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines()]
    code = "\n".join(lines)
    assert set(re.findall(r"\\([A-Za-z]+)", code)) <= COMMANDS, set(re.findall(r"\\([A-Za-z]+)", code)) - COMMANDS
    # control sequences of one character: escapes, and ends of rows
    assert set(re.findall(r"\\([^A-Za-z])", code)) <= set("\\{}$&#%_"), re.findall(r"\\([^A-Za-z])", code)
    bare = re.sub(r"\\[^A-Za-z]", "", code)
    assert "~" not in bare and "\x00" not in bare and re.findall("#.", bare) in ([], ["#1"])
    assert len(re.findall(r"\$", bare)) == 2 * len(re.findall(r"\$-?[0-9.]+ \\times 10\^\{-?[0-9]+\}\$", bare))
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    open_ones = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", code):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
