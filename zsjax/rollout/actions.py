"""What a policy can do: the tags of each action and what follows from it."""

# What a row waits for.
NOTHING, DOCUMENTS, HINT = 0, 1, 2
