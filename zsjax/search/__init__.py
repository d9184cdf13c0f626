"""Search: engines over a corpus or a network, and the simulator that takes their place in training."""

from zsjax.errors import BudgetSpent
from zsjax.search.engine import Document, Engine, Failed, SearchContext
from zsjax.search.engines.ablations import DropBest, Empty
from zsjax.search.engines.bm25 import BM25
from zsjax.search.engines.chat import ChatSimulator
from zsjax.search.engines.dense import Dense, decoder_embedder
from zsjax.search.engines.http import HttpRetriever
from zsjax.search.engines.mixed import Mixed
from zsjax.search.engines.serpapi import SerpApi
from zsjax.search.transport import Limits, SearchError

__all__ = ["BM25", "BudgetSpent", "ChatSimulator", "Dense", "Document", "DropBest", "Empty", "Engine", "Failed",
           "HttpRetriever", "Limits", "Mixed", "SearchContext", "SearchError", "SerpApi", "decoder_embedder"]
