"""Explanations: why did an image get its category?"""
