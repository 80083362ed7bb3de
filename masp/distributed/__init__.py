"""Several ranks: which one is this, what do they exchange, and are all of them alive?

ranks        read the ranks from the launcher's environment; join them
collectives  barrier, all-reduce, broadcast, gather, agreement
liveness     notice within bounded time that a rank was killed
task_share   the share of the shards of one process, without joining any
"""
