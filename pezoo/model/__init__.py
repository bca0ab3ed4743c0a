"""The shared model: its Transformer, its cache, decoding, and the devices it runs on."""
