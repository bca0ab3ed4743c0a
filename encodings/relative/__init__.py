"""Encodings of the offset between query and key, inside the attention product and the values."""
