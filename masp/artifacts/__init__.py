"""Artifacts: what does training leave, and who may use it?"""
