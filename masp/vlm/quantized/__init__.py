"""The frozen language half in 8 or 4 bits.

rounding  a matrix as integers and scales, with torchao's arithmetic
layers    linear layers and tables of experts that quantize their weights as they are read
"""
