"""Serving: how does a trained model answer over HTTP, to programs and to people?"""
