"""The feature cache: how do features lie on disk, and are they whole?"""
