"""Collected images, seen by a person: the page on which they are labelled, and the folders that follow from it."""
