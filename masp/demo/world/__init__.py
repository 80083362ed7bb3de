"""The demo world: what do its images show, and which emotion do they evoke?"""
