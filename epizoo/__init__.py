"""A Keras zoo of encoders of normal brain tissue, and a detector of lesions on their codes."""
