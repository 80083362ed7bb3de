"""One job: what is it, and how does it behave on its node?"""
