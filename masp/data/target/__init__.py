"""The labels of a target: what a run recognizes in images whose dataset may be about something else."""
