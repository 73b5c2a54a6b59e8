"""Operators in C++ for the processor, and how they are built."""
