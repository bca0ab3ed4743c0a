"""`pezoo bench`: speed and memory, beside their goals and side by side."""
