"""The frozen VLM: how is it loaded in halves?"""
