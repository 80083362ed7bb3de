"""Encoders that do not fit their weights: one line that names the directory."""

from masp.vlm.vision import load_vision_half


def test_the_patch_size_of_another_model(refused, change):
    change("config.json", vision_config__patch_size=16)
    change("preprocessor_config.json", patch_size=16)
    line = refused(load_vision_half)
    assert "do not fit its config.json: 1 tensors are missing or of another shape: 'model.visual.patch_e" in line
