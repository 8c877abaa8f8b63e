"""Lessons of the tutor for tests: over a scripted endpoint, with a look at the exercise that is open."""

import contextlib
import json
import sqlite3

from deepen.apps.documents import find_documents
from deepen.apps.support import open_knowledge
from deepen.apps.tutor import Lesson, Store
from deepen.engine.openai import OpenAIEngine

MODEL = "scribe"
PAGES = {
    "bees.md": "# Honey bees\n\nA colony of honey bees has one queen and many thousand workers. The queen lays up to 2000 eggs"
    " a day in early summer. Worker bees collect nectar and pollen from flowers near the colony.\n\nThe workers dance to tell"
    " other workers of the colony where the flowers are. Honey bees store honey and pollen in wax combs for the winter.\n",
    "wasps.txt": "The nest of a wasp is made of paper. Old wasps of the nest chew wood to make paper for the combs.\n",
}


@contextlib.contextmanager
def lesson(url, topic="fractions", *, docs=None, **options):
    with contextlib.ExitStack() as stack:
        if docs is not None:
            index = docs.with_name("index.sqlite")
            options["material"] = stack.enter_context(open_knowledge(find_documents([docs]), index))
            options["material_name"] = str(docs)
        store = stack.enter_context(Store())
        yield Lesson(OpenAIEngine(url, MODEL), store, topic, **options)


def opened():
    """The exercise that was begun last, with its answer, from the file itself."""
    with contextlib.closing(sqlite3.connect(learner_file())) as database:
        row = database.execute("SELECT content FROM exercise WHERE ended IS NULL ORDER BY id DESC").fetchone()
    return json.loads(row[0])


def learner_file():
    with Store() as store:
        return store.file
