"""What must be known about an image file before Pillow reads it: the memory that it takes, and how to repair it."""
