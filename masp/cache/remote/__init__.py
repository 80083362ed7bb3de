"""Caches that travel: how does a finished cache get to the hub, a bucket or another disk, and back?"""
