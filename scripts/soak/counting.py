"""Our counts beside those of the families' own libraries, and of a model's own server: drawn texts of every kind."""

import json
import urllib.request

from counting_references import REFERENCES, Reference, compare, reference
from llama_process import llama_process

from soak.parts import Figures, Step

SEED = 2
SERVED = "smollm2"
ANSWER_SECONDS_MAX = 50.0


def counting(texts: int, step: Step) -> Figures:
    """So many texts for each family, whole and in three chunkings each."""
    for name in REFERENCES:
        compare(name, reference(name), texts, SEED)
    with llama_process() as server:
        # A step is a text that all families have counted.
        compare(SERVED, _served(server.url), texts, SEED, step)
    families = ", ".join((*REFERENCES, f"{SERVED} (its server)"))
    return {"texts for each family:": f"{texts:,}", "families:": families, "differences:": "0"}


def _served(url: str) -> Reference:
    def count(text: str) -> int:
        body = json.dumps({"content": text, "parse_special": True}).encode()
        request = urllib.request.Request(f"{url.removesuffix('/v1')}/tokenize", body)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:
            return len(json.load(response)["tokens"])

    return count
