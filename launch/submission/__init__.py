"""Submissions: what was handed to whom, and what became of it?"""
