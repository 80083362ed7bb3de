"""Published datasets of emotions that images evoke, as they are shipped."""
