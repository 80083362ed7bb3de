"""Training: how is a stage trained, stopped and resumed?"""
