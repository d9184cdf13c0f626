"""Making a simulator: searches collected with a real engine, examples made from them, tuning, and the gates after it."""
