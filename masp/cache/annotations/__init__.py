"""Answers to aspects that nobody annotated, stored beside the features: what they depend on, their files, reading."""
