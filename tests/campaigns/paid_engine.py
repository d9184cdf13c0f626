"""Web search that costs money, of a server on this machine."""

import json
import os
import threading
import time
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from tests.search.faulty_server import FaultyServer, Handler
from zsjax.search import BM25, SerpApi
from zsjax.tiny_world import world

URL_NAME, FOLDER, PRICE = "ZSJAX_CAMPAIGN_PAID_URL", "paid", 0.5


def engine(setting):
    """The factory of a config: SerpApi at the address that the environment names."""
    return SerpApi(url=os.environ[URL_NAME], cache_dir=setting.workdir / FOLDER, price=PRICE, limits=setting.limits)


class PaidHandler(Handler):
    def handle(self):
        path, _ = self._read()
        query = parse_qs(urlsplit(path).query)["q"][0]
        with self.server.lock:
            self.server.asked.append(query)
        time.sleep(0.02)  # a kill may come before the reply does
        found = self.server.engine.search([query], None, k=5)[0]
        self._send(200, json.dumps({"search_metadata": {"status": "Success"}, "organic_results": [
            {"title": document.title, "snippet": document.text} for document in found]}).encode())


class PaidServer(FaultyServer):
    """A context. asked: the query of each request, in their order."""

    def __init__(self, worlds: Sequence):
        super().__init__(handler=PaidHandler)
        self.asked, self.engine = [], BM25.from_documents(world.documents(worlds))

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()
