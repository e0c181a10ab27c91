"""Coupled channels, and networks without some of them."""
