"""How large are many images, by their headers alone?"""
