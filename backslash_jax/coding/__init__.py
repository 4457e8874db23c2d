"""Entropy coding of integers: rANS, Huffman and exp-Golomb, in NumPy."""
