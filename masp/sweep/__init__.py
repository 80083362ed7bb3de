"""Sweeps: which of many settings of the soft prompt are best?"""
