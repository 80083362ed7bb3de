"""What one process knows of itself: its device, when to stop, its run's directory, and where its messages go."""
