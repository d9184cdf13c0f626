"""A run: its stages, the objects that its config names, its folder, questions and games on a terminal, export."""
