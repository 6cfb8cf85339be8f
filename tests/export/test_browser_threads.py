"""Threads of the browser page: how many it takes, and when it installs the service worker and loads again."""

import pytest

from tests.helpers.node import needs_node, node

pytestmark = needs_node

PROGRAM = """
import { threadCount, willBeIsolated } from "pages/threads.js";

// A browser's service workers: how the registration goes, and the states that the worker then passes through.
function made({ refuses, active, states = [] }, asked) {
  return {
    register: async (file) => {
      asked.push(file);
      if (refuses) throw new Error("refused");
      const worker = { state: "installing" };
      states.forEach((state, place) => setTimeout(() => {
        worker.state = state;
        worker.onstatechange();
      }, 5 * (place + 1)));
      return active ? { active: worker } : { active: null, installing: worker, waiting: null };
    },
  };
}

async function answer({ threads, cases }) {
  const found = [];
  for (const { isolated = false, reloaded = false, browser } of cases) {
    const asked = [];
    const serviceWorkers = browser && made(browser, asked);
    const again = await willBeIsolated({ isolated, reloaded, serviceWorkers, longest: 200 });
    found.push([again, asked]);
  }
  return { threads: threads.map((each) => threadCount(...each)), found };
}
"""
INSTALLS = {"states": ["installed", "activating", "activated"]}
CASES = {
    "installed for the first time": ({"browser": INSTALLS}, True),
    "installed before, but passed over": ({"browser": {"active": True}}, True),
    "isolated already, as by a server's own headers": ({"isolated": True, "browser": INSTALLS}, False),
    "loaded again and still not isolated": ({"reloaded": True, "browser": INSTALLS}, False),
    "no service workers, as in private windows": ({}, False),
    "refused": ({"browser": {"refuses": True}}, False),
    "fails to install": ({"browser": {"states": ["redundant"]}}, False),
    "never starts": ({"browser": {"states": ["installed"]}}, False),
}
THREADS = [([True, 8], 4), ([True, 2], 2), ([True, None], 1), ([False, 8], 1)]


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> dict:
    given = {"threads": [each for each, _ in THREADS], "cases": [case for case, _ in CASES.values()]}
    return node(PROGRAM, given, tmp_path_factory.mktemp("node"))


def test_threads_need_isolation(answered):
    assert answered["threads"] == [count for _, count in THREADS]


@pytest.mark.parametrize("name", CASES)
def test_the_page_loads_again_only_if_that_helps(name, answered):
    case, wanted = CASES[name]
    again, asked = answered["found"][[*CASES].index(name)]
    assert again == wanted
    asks = "browser" in case and not case.get("isolated") and not case.get("reloaded")
    assert asked == (["isolation.js"] if asks else [])
