"""Experiments: how do several runs, formats or implementations compare?"""
