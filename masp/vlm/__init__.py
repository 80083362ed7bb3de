"""The frozen VLM: how is it loaded in halves, and what does it cost?"""
