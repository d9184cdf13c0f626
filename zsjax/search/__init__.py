"""Search: engines over a corpus or a network, and the simulator that takes their place in training."""

from zsjax.search.bm25 import BM25
from zsjax.search.dense import Dense, decoder_embedder
from zsjax.search.engine import BudgetSpent, Document, DropBest, Empty, Engine, Failed, Mixed, SearchContext
from zsjax.search.http import HttpRetriever
from zsjax.search.openai_chat import ChatSimulator
from zsjax.search.serpapi import SerpApi
from zsjax.search.transport import Limits, SearchError

__all__ = ["BM25", "BudgetSpent", "ChatSimulator", "Dense", "Document", "DropBest", "Empty", "Engine", "Failed",
           "HttpRetriever", "Limits", "Mixed", "SearchContext", "SearchError", "SerpApi", "decoder_embedder"]
