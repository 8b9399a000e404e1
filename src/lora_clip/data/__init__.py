"""Bytes in: where images come from, who reads which, and how they become pixels."""
