"""Answers to aspects that nobody annotated: by the frozen VLM from stored features, or from the pixels."""
