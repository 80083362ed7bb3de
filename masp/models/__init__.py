"""What is trained around the VLM, and how does a batch run through both?"""
