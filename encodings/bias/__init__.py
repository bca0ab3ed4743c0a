"""Encodings of the offset between query and key as a bias on the attention logits."""
