"""Jobs on a cluster: the same commands as `masp`, submitted through submitit to Slurm or to this machine."""
