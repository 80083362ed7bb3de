"""Several evaluations behind one pass of what their prompts have in common."""
