"""The texts of the carried templates of simulators and judges."""

REQUEST = """\
Number of documents:
{num_documents} 
Kind of documents:
{mode} 
The user's question:
{question} 
Answers to it:
{answers} 
Query:
{query} 
Documents:
"""

# For a small model, which forgets a mode that stands far from the reply.
MODE_LAST = """\
The user's question:
{question} 
Answers to it:
{answers} 
Query:
{query} 
Write {num_documents} {mode} documents:
"""

DEFAULT = """\
You play a web search engine. For a query you write the documents that a search engine would list for it, as a mixture \
of web pages and encyclopedia articles reads: about thirty words each, each on a line of its own, in the form \
"Doc 1: Title. Text". You write nothing else.
You are told which kind of documents is wanted. Useful documents contain what the query asks for. Noisy documents are \
about the same things and read as plausibly, but what the query asks for is not in them.
You are also told which question the user is working on and every answer to it that counts as right. Use them to stay \
with the facts. A document gives the answer away only if it is useful and the query asks for just that.

""" + REQUEST

TINY_WORLD = "simulate {mode} \nquestion:\n{question} \nanswer:\n{answers} \nquery:\n{query} \ndocuments:\n"

# The tiny world's prompted simulator, with one demonstration of both kinds from a training world. Results are in
# experiments/README.md: so small a model has not learned to use demonstrations.
TINY_WORLD_PROMPTED = """\
simulate useful 
question:
 What is the rival of Liri Crusted? 
answer:
 Sura Ontosk 
query:
 rival of Liri Crusted 
documents:
* rival of Liri Crusted is Sura Ontosk.
* mother of Liri Crusted is Talen Pelcroft.
* voice of Liri Crusted is Rori Onvik.
simulate noisy 
question:
 What is the rival of Liri Crusted? 
answer:
 Sura Ontosk 
query:
 rival of Liri Crusted 
documents:
* mother of Liri Crusted is Talen Pelcroft.
* voice of Liri Crusted is Rori Onvik.
* spouse of Liri Crusted is Limir Yarmere.
""" + TINY_WORLD

# For an instruct model without tuning: the same order with one demonstration of both kinds. Text that is equal for all
# requests comes first, so servers with prefix caches read it once.
PROMPTED = """\
You play a web search engine. For a query you write the documents that a search engine would list for it, about thirty \
words each, each on a line of its own, in the form "Doc 1: Title. Text". You write nothing else.
You are told which kind of documents is wanted. Useful documents contain what the query asks for. Noisy documents are \
about the same things and read as plausibly, but what the query asks for is not in them.

An example. The user's question: Which river flows through the birthplace of Johannes Kepler? Answers to it: Würm. \
Query: where was Johannes Kepler born. Two useful documents:
Doc 1: Johannes Kepler. The astronomer Johannes Kepler was born on 27 December 1571 in the free imperial city of Weil der \
Stadt, in what is now Baden-Württemberg, and was sent to the school of Leonberg.
Doc 2: Weil der Stadt. A small town west of Stuttgart, known as the birthplace of Johannes Kepler, whose house by the \
market square is a museum of his life and of his three laws.
The same query, two noisy documents:
Doc 1: Kepler's laws. The three laws of planetary motion, published between 1609 and 1619, describe orbits as ellipses and \
were found in the observations that Tycho Brahe had left in Prague.
Doc 2: Kepler space telescope. Launched in 2009 and named after the astronomer, it watched more than half a million stars \
for nine years and found over two thousand planets.

Now your turn.
""" + REQUEST

# What ZeroSearch's published simulators were tuned with (arXiv 2505.04588, table 2; line breaks as in its repository,
# which sends it with an empty system message). It always asks for five documents.
ZEROSEARCH = """\
You are the Google search engine.
Given a query, you need to generate five {mode} documents for the query.

The user is trying to answer the question: "{question}" whose answer is {answer}.
Each document should contain about 30 words, and these documents should contain {mode} information.

Query: {query}
{Mode} Output:
"""

JUDGE = """\
You judge whether a document helps to answer a question. It helps if one of the right answers, or a fact that is needed on \
the way to it, can be read from it; a document about the same things that does not say so does not help.
Question:
{question}
Right answers:
{answers}
Document:
{document}
Does the document help? Say yes or no.
Verdict:"""
