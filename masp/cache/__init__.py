"""The feature cache: how are features stored on disk, and are they whole?"""
