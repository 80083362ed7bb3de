"""The study: what is each part of the method worth, over several seeds?"""
