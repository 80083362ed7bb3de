"""Datasets: what is in a directory of labeled images?"""
