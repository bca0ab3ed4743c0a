"""Other people's trained models: any scheme inside a decoder of the library transformers."""
