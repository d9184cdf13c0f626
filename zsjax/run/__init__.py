"""A run as a whole: its stages in order, the objects that its config names, its folder, one question, export."""
