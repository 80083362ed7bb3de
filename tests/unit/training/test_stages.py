"""What differs between the stages: their identity, their artifact, and what each refuses before anything is loaded."""

import copy
from dataclasses import replace

import pytest
import torch

from masp.artifacts.store import Lineage, load_aspects, load_soft_prompt, save_aspects
from masp.errors import InputError
from masp.models.forward import Stage1Model, Stage2Model
from masp.models.trainable import AspectModules
from masp.training.stages import open_stage

COURSE = ["num_epochs", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "global_batch_size", "layout"]
SHARED = "stage seed aspects vlm cache categories questions engine.precision aspect_module.num_queries".split()


@pytest.fixture
def run(config, tmp_path):
    """A configuration of its own whose aspect modules are there, in the released format."""
    config = copy.deepcopy(config)
    config.output_dir = str(tmp_path)
    modules = AspectModules(config.aspects, 32, config.aspect_module.num_queries)
    save_aspects(modules, tmp_path, Lineage("aspect", "trained"))
    config.checkpoint.aspect = str(tmp_path / "aspect.pth")
    return config


def test_the_identity_names_what_decides_the_course(run):
    """A checkpoint holds these: another key, or another value for the same run, and no earlier run resumes."""
    one, two = (open_stage(name, run, "cpu").identity() for name in ("stage1", "stage2"))
    assert list(one) == [*SHARED, "aspect_module.init_scale", *(f"stage1.{n}" for n in COURSE), "num_steps"]
    course = [*COURSE, "num_soft_prompt_tokens", "soft_prompt_init"]
    assert list(two) == [*SHARED, "checkpoint.aspect", *(f"stage2.{n}" for n in course), "num_steps"]
    assert one["aspects"] == two["aspects"] == list(run.aspects) and len(two["checkpoint.aspect"]) == 64
    run.stage2 = replace(run.stage2, validate_every=2, validation_size=3, vision_features=False)
    more = open_stage("stage2", run, "cpu").identity()
    added = {"stage2.vision_features", "stage2.validate_every", "stage2.validation_size", "stage2.patience"}
    assert set(more) - set(two) == added and more["stage2.vision_features"] is False


def test_what_was_no_choice_before_is_in_the_identity_only_where_it_is_taken(run):
    before = [open_stage(name, run, "cpu").identity() for name in ("stage1", "stage2")]
    run.stage1 = replace(run.stage1, position="pair", schedule="published")
    run.stage2 = replace(run.stage2, schedule="published")
    run.vlm = replace(run.vlm, quantization="int4")
    after = [open_stage(name, run, "cpu").identity() for name in ("stage1", "stage2")]
    assert [set(a) - set(b) for a, b in zip(after, before, strict=True)] == [
        {"stage1.position", "stage1.schedule", "vlm.quantization"},
        {"stage2.schedule", "vlm.quantization"},
    ]


def test_stage_1_does_not_depend_on_the_target_and_stage_2_names_it(run):
    before = [open_stage(name, run, "cpu") for name in ("stage1", "stage2")]
    assert before[1].target is None and before[1].artifact.name == "soft_prompt_folder.safetensors"
    run.target = replace(run.target, name="season", questions=["Which of {categories}?"], categories=["joy", "awe"])
    one, two = (open_stage(name, run, "cpu") for name in ("stage1", "stage2"))
    assert one.identity() == before[0].identity() and one.target is None and one.cache.labels is None
    assert one.cache.categories == before[0].cache.categories
    assert set(two.identity()) - set(before[1].identity()) == {"target"}
    assert two.identity()["target"] == vars(two.target) and two.identity()["categories"] == ["joy", "awe"]
    assert (two.target.name, two.target.source, len(two.target.labels)) == ("season", "dataset", 64)
    assert two.artifact.name == "soft_prompt_folder_season.safetensors"
    kept = [before[1].cache.read(row).category in ("joy", "awe") for row in before[1].schedule.rows.tolist()]
    assert two.schedule.rows.tolist() == before[1].schedule.rows[kept].tolist() and not all(kept)
    run.target = replace(run.target, categories=["awe", "joy"])
    assert open_stage("stage2", run, "cpu").target.labels != two.target.labels
    run.target = replace(run.target, name="emotion", questions=None, categories=None)
    assert open_stage("stage2", run, "cpu").identity() == before[1].identity()


def test_both_stages_train_on_the_subset_and_their_identity_and_lineage_name_it(run):
    before = [open_stage(name, run, "cpu").identity() for name in ("stage1", "stage2")]
    run.dataset = replace(run.dataset, fraction=1.0)
    assert [open_stage(name, run, "cpu").identity() for name in ("stage1", "stage2")] == before
    run.dataset = replace(run.dataset, fraction=0.5, subset_seed=2)
    run.stage1, run.stage2 = (replace(stage, validate_every=1, validation_size=2) for stage in (run.stage1, run.stage2))
    one, two = (open_stage(name, run, "cpu") for name in ("stage1", "stage2"))
    trained = set(two.schedule.rows) | set(two.schedule.held_out.rows)  # held-out images are taken out of the subset
    assert trained == set(two.cache.rows("train")) and 0 < len(trained) < 13
    assert set(one.schedule.rows) | set(one.schedule.held_out.rows) < trained  # those that are annotated
    for stage in (one, two):
        identity = stage.identity()
        assert (identity["dataset.fraction"], identity["dataset.subset_seed"]) == (0.5, 2)
        assert identity["dataset.subset"] == one.cache.subset.identity()["dataset.subset"]
        assert identity["dataset.subset"]["num_images"] == len(trained)
        assert stage.record.findings[-1].text.startswith(f"training takes {len(trained)} of 13 training images")
    modules = AspectModules(run.aspects, 32, run.aspect_module.num_queries)
    one.directory.mkdir()
    one.export({f"aspect_modules.{name}": value for name, value in modules.state_dict().items()}, one.identity())
    _, lineage = load_aspects(str(one.artifact), run.aspects, 32)
    assert lineage.settings["dataset.subset"] == one.identity()["dataset.subset"]


def test_aspects_that_no_image_of_a_subset_is_annotated_with_are_refused_and_the_subset_is_named(run):
    run.dataset = replace(run.dataset, shots=1)
    run.aspects = ["scene", "facial_expression"]
    with pytest.raises(InputError, match=r"facial_expression \(of the subset: 3 of 13 training images"):
        open_stage("stage1", run, "cpu")


def test_no_training_image_with_a_label_is_said_of_the_target(run, tmp_path):
    keys = [key for key in open_stage("stage2", run, "cpu").cache.index.keys if key.startswith("test/")]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["key,label", *(f"{key},{'hot' if n % 2 else 'cold'}" for n, key in enumerate(keys))]))
    run.target = replace(run.target, name="heat", questions=["{categories}?"], labels=str(table))
    with pytest.raises(InputError, match="has no training image that target heat has a label for"):
        open_stage("stage2", run, "cpu")
    open_stage("stage1", run, "cpu")


def test_a_soft_prompt_starts_from_the_rows_behind_the_last_token(run):
    run.stage2 = replace(run.stage2, soft_prompt_init="padding_rows", num_soft_prompt_tokens=5)
    model, prompt = open_stage("stage2", run, "cpu").build("cpu")
    last = len(prompt.tokenizer)
    table = model.language.decoder.embed_tokens.weight
    assert torch.equal(model.soft_prompt.weight, table[last : last + 5])
    room = len(table) - last
    run.stage2 = replace(run.stage2, num_soft_prompt_tokens=room + 1)
    with pytest.raises(InputError, match=f"room for {room} vectors, and stage2.num_soft_prompt_tokens = {room + 1}"):
        open_stage("stage2", run, "cpu")


def test_without_aspect_modules(run):
    run.checkpoint.aspect = "none"
    stage = open_stage("stage2", run, "cpu")
    assert stage.aspects == () and stage.num_aspect_tokens == 0 and stage.aspect_modules is None
    assert stage.identity()["aspects"] == [] and stage.identity()["checkpoint.aspect"] is None


@pytest.mark.parametrize(("name", "kind"), [("stage1", Stage1Model), ("stage2", Stage2Model)])
def test_what_is_built_is_what_is_left(run, name, kind):
    stage = open_stage(name, run, "cpu")
    model, _ = stage.build("cpu")
    again, _ = stage.build("cpu")
    assert isinstance(model, kind)
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(dict(again.named_parameters())[n], value) for n, value in trained.items())
    stage.directory.mkdir()
    stage.export(trained, stage.identity())
    assert stage.artifact.is_file() and stage.artifact.parent == stage.directory
    if name == "stage1":
        artifact, lineage = load_aspects(str(stage.artifact), run.aspects, 32)
        kept = {f"aspect_modules.{n}": p for n, p in artifact.named_parameters()}
    else:
        artifact, lineage = load_soft_prompt(str(stage.artifact), 32)
        kept = {"soft_prompt.weight": artifact.weight}
        assert lineage.aspect_digest == stage.aspect_digest
    assert kept.keys() == trained.keys() and all(torch.equal(kept[n], value) for n, value in trained.items())
    assert (lineage.kind, lineage.origin, lineage.layout) == (stage.kind, "trained", "after_image")
    assert lineage.settings == stage.identity()


def test_aspect_modules_from_another_quantization_are_used_and_it_is_said(run):
    stage = open_stage("stage1", run, "cpu")
    model, _ = stage.build("cpu")
    stage.directory.mkdir()
    stage.export({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, stage.identity())
    run.checkpoint.aspect = str(stage.artifact)
    before = open_stage("stage2", run, "cpu").notes()
    run.vlm = replace(run.vlm, quantization="int8")
    added = [note for note in open_stage("stage2", run, "cpu").notes() if note not in before]
    assert added == ["the aspect modules were trained with vlm.quantization=none, and it is int8 here"]


def test_an_artifact_that_cannot_be_written(run):
    stage = open_stage("stage2", run, "cpu")  # without a directory
    with pytest.raises(InputError, match=f"output_dir: {stage.artifact} cannot be written: .*No such file"):
        stage.export({"soft_prompt.weight": torch.zeros(4, 32)}, stage.identity())


def test_what_a_stage_refuses(run):
    def refused(name: str, device: str = "cpu", **changes: object) -> str:
        with pytest.raises(InputError) as error:
            open_stage(name, replace(run, **changes), device)
        return str(error.value)

    assert refused("stage1", aspects=[]).startswith("aspects = []: stage 1 trains aspect modules")
    assert "needs a GPU" in refused("stage2", engine=replace(run.engine, precision="fp16"))
    assert "no training image is annotated with any of human_action" in refused("stage1", aspects=["human_action"])
    queries = replace(run.aspect_module, num_queries=2)
    assert "num_queries = 2: the aspect modules in checkpoint.aspect have 5" in refused("stage2", aspect_module=queries)
    rounded = {"vlm": replace(run.vlm, quantization="int8"), "engine": replace(run.engine, zero_stage=3)}
    assert "vlm.quantization = 'int8': not with engine.zero_stage=3" in refused("stage1", **rounded)
    cache = replace(run.cache, aspect_tokens=True)
    assert "cache.aspect_tokens = true: " in refused("stage2", cache=cache)


def test_the_dataset_says_which_key_was_probably_meant(run, monkeypatch):
    import masp.training.stages as stages
    from masp.data.findings import DatasetRecord, Holdings, key_findings

    record = DatasetRecord(
        1,
        "",
        Holdings({}, {}),
        tuple(key_findings({("Human Action", "human_action"): 3, ("Colourfulness", "colorfulness"): 2})),
    )
    monkeypatch.setattr(stages, "findings_of", lambda *_: record)
    run.aspects = ["scene", "human_action", "colorfulness"]
    with pytest.raises(InputError) as error:
        open_stage("stage1", run, "cpu")
    assert str(error.value) == (
        "aspects: no training image is annotated with human_action or colorfulness (3 annotations have the key "
        "'Human Action', which is ignored: did you mean human_action?) (2 annotations have the key 'Colourfulness', "
        "which is ignored: did you mean colorfulness?), so that their modules would keep random values; give "
        "aspects=[scene] or annotate images with them (`masp annotate` lets the VLM do it)"
    )


def test_aspects_whose_only_images_are_held_out_are_refused(run, monkeypatch):
    run.stage1 = replace(run.stage1, validate_every=1, validation_size=3)
    stage = open_stage("stage1", run, "cpu")
    held_out = stage.schedule.held_out.rows
    has_answer = stage.cache.has_answer
    only = lambda rows, aspect: has_answer(rows, aspect) & (aspect != "scene" or [r in held_out for r in rows])  # noqa: E731
    monkeypatch.setattr(stage.cache, "has_answer", only)
    with pytest.raises(InputError, match="no training image is annotated with scene"):
        stage.check_samples()


def test_what_never_received_a_gradient_is_not_called_trained(run):
    one, two = (open_stage(name, run, "cpu") for name in ("stage1", "stage2"))
    zero, moved = torch.zeros(2, 32), torch.ones(2, 32)
    moments = {f"aspect_modules.by_aspect.{aspect}.query#exp_avg": moved for aspect in one.aspects}
    assert one.untrained(moments) == ()
    assert one.untrained(moments | {"aspect_modules.by_aspect.scene.query#exp_avg": zero}) == (
        "the module of aspect 'scene'",
    )
    assert len(one.untrained({})) == len(one.aspects)  # every step was skipped
    assert two.untrained({"soft_prompt.weight": moved, "soft_prompt.weight#exp_avg": zero}) == ("the soft prompt",)
    assert two.untrained({"soft_prompt.weight#exp_avg": moved}) == ()
