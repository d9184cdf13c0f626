"""Scripts that measure, and what they share. A package, as libraries ship folders of this name (pyarrow 17 does)."""
