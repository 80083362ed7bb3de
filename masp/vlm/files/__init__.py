"""What do the files of a VLM say, which may come from anyone?"""
