"""Where pooled features pass in a model (`taps`), and how images are read through it: `ImageReader` is the only way."""
