"""One process: what does it know of its device, its run directory, and when to stop?"""
