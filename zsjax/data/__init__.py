"""Questions, corpora, tokenizers and the files that the package carries."""

from zsjax.data.questions import QuestionStream, load_corpus, load_questions
from zsjax.data.tokenization import Tokenizer, load_tokenizer

__all__ = ["QuestionStream", "Tokenizer", "load_corpus", "load_questions", "load_tokenizer"]
