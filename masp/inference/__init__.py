"""Inference: what does a trained model say about any image, and how is it passed on?"""
