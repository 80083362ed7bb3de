"""Evaluation: what is asked of a split, and how is it scored?"""
