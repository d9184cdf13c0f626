"""Questions, corpora, tokenizers and what is carried with the package."""

from zsjax.data.questions import QuestionStream, load_corpus, load_questions
from zsjax.data.tokenization import Tokenizer, load_tokenizer

__all__ = ["QuestionStream", "Tokenizer", "load_corpus", "load_questions", "load_tokenizer"]
