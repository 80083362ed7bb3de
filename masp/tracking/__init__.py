"""Experiment trackers: where do others see how training goes, and what came of it? TensorBoard, W&B and MLflow."""
