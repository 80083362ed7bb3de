"""Restarts: how are several initial values of the aspect modules trained in one pass, and which is kept?"""
