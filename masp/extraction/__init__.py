"""Extraction: how do images become features in a cache?"""
