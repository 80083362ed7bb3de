"""Groups: how are several soft prompts trained behind one pass of what comes before them?"""
