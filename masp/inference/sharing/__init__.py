"""Sharing: how does what was trained become a directory that anyone can use, and how does it get to the hub?"""
