"""The training and decoding engine: the only part of ptkit that imports torch at the top."""
