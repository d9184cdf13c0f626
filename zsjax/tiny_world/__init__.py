"""Everything that exists for the tiny world only: its facts and texts, and how its base models are made."""
