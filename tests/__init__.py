"""The tests, and what they share. A package, as libraries ship folders of this name."""
