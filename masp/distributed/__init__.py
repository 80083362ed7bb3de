"""Ranks: who are they, what do they agree on, is one of them gone, and which share of the work is mine?"""
