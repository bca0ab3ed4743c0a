"""Other people's models: what their configs say of positions, as schemes, and schemes told to transformers."""
