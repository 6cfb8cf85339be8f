"""The GPU under the browser page: which runtime it loads, and when it goes on with the GPU."""

import pytest

from tests.helpers.node import needs_node, node

pytestmark = needs_node

PROGRAM = """
import { timeIfBetter, runtimeFor } from "pages/gpu.js";

// navigator.gpu: without an adapter, with one that is refused, or with one that is simulated or not.
const made = (kind) => kind && {
  requestAdapter: async () => {
    if (kind === "refuses") throw new Error("refused");
    return kind === "none" ? null : { info: { isFallbackAdapter: kind === "simulated" } };
  },
};

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function answer({ runtimes, trials }) {
  const found = { runtimes: [], trials: [] };
  for (const { wanted = null, gpu, canWait = true } of runtimes) {
    found.runtimes.push(await runtimeFor(wanted, { gpu: made(gpu), canWait }));
  }
  for (const { texts, first, second, fails, wanted = null } of trials) {
    let calls = 0;
    const caption = async (trial) => {
      if (fails) throw new Error("device lost");
      await wait(calls++ ? second : first);
      return { captions: trial.map((text) => ({ text })) };
    };
    const cpu = { captions: [{ text: "a dog" }, { text: "a cat" }], milliseconds: 100 };
    found.trials.push(await timeIfBetter(texts, caption, cpu, wanted));
  }
  return found;
}
"""
SAME = ["a dog", "a cat"]
RUNTIMES = {
    "a GPU": ({"gpu": "real"}, "webgpu"),
    "a simulated one": ({"gpu": "simulated"}, "wasm"),
    "a simulated one, wanted": ({"gpu": "simulated", "wanted": "gpu"}, "webgpu"),
    "not wanted": ({"gpu": "real", "wanted": "cpu"}, "wasm"),
    "no JSPI": ({"gpu": "real", "wanted": "gpu", "canWait": False}, "wasm"),
    "no WebGPU": ({"wanted": "gpu"}, "wasm"),
    "no adapter": ({"gpu": "none"}, "wasm"),
    "adapter refused": ({"gpu": "refuses"}, "wasm"),
}
TRIALS = {
    "faster once its shaders are compiled": ({"texts": SAME, "first": 150, "second": 1}, True),
    "slower": ({"texts": SAME, "first": 1, "second": 150}, False),
    "slower, wanted": ({"texts": SAME, "first": 1, "second": 150, "wanted": "gpu"}, True),
    "another caption": ({"texts": ["a dog", "a cow"], "first": 1, "second": 1, "wanted": "gpu"}, False),
    "fails": ({"texts": SAME, "fails": True, "wanted": "gpu"}, False),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> dict:
    given = {
        "runtimes": [case for case, _ in RUNTIMES.values()],
        "trials": [case for case, _ in TRIALS.values()],
    }
    return node(PROGRAM, given, tmp_path_factory.mktemp("node"))


@pytest.mark.parametrize("name", RUNTIMES)
def test_webgpu_is_loaded_only_where_it_runs(name, answered):
    assert answered["runtimes"][[*RUNTIMES].index(name)] == RUNTIMES[name][1]


@pytest.mark.parametrize("name", TRIALS)
def test_the_gpu_must_be_faster_and_give_the_same_captions(name, answered):
    milliseconds = answered["trials"][[*TRIALS].index(name)]
    case, taken = TRIALS[name]
    assert (milliseconds is not None) == taken
    if taken:
        assert milliseconds >= case["second"] - 1  # timers round
