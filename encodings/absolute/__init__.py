"""Encodings of each token's own position, added to its embedding; and none at all."""
