"""Folders with which other programs run an exported model."""
