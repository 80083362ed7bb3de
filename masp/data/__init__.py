"""Datasets: what is in a folder of labelled pictures, and how it becomes questions, answers and RGB images."""
