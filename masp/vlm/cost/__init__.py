"""How many floating-point operations does a VLM take?"""
