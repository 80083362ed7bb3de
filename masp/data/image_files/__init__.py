"""How is one image file read: the memory that it takes, how it can be repaired, and its pixels?"""
