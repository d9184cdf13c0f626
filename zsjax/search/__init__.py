"""Search: engines over a corpus, and the simulator that takes their place in training."""

from zsjax.search.bm25 import BM25
from zsjax.search.engine import Document, DropBest, Empty, Engine, SearchContext

__all__ = ["BM25", "Document", "DropBest", "Empty", "Engine", "SearchContext"]
