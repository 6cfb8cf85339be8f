"""CaptionTask on a mixture: which rows, captions and texts a step has, document frequencies, rewards and validation."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sca_caption import checkpoint
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.mixture import Mixture
from sca_caption.datasets.sources.records import Source
from sca_caption.decoding.beam_search import greedy
from sca_caption.evaluation.caption_quality import Quality
from sca_caption.evaluation.cider import cider
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.training import caption_task
from sca_caption.training.caption_task import CaptionTask, document_frequency
from sca_caption.training.losses import caption_loss
from sca_caption.training.self_critical import END
from sca_caption.training.text_only import text_loss
from sca_caption.training.validation import Validation
from sca_caption.vocab import SPECIALS
from tests.helpers.made_photos import message, record, write
from tests.helpers.mixtures import ANIMALS, TEXTS, mixture_of, write_two
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import (
    QUICK,
    Interruption,
    assert_equal_histories,
    assert_equal_tensors,
    captioner,
    run,
)

pytestmark = pytest.mark.usefixtures("toy", "no_tensorboard")

MIXED = dataclasses.replace(QUICK, texts_per_step=2, captions_per_image=1, epochs=3)
READING = {"word_rank": 4}
# Rows of the mixture: 11 squares (7 train, 3 val, 1 test), then 5 animals (3 train, 2 val).
SQUARES, CREATURES = range(7), range(11, 14)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    return write_two(tmp_path_factory.mktemp("two"))


@pytest.fixture
def mixture(paths) -> Mixture:
    return mixture_of(paths)


def task_of(data: Mixture, config=MIXED, **changes) -> CaptionTask:
    settings = READING | {"styles": data.styles, "dropout": 0.0, "word_dropout_rate": 0.0} | changes
    return CaptionTask(captioner(data, **settings), data, config)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_each_file_has_equally_many_images_in_an_epoch(mixture):
    task = task_of(mixture)
    assert task.images_per_epoch == 14 and task.steps_per_epoch == 5
    for epoch in range(3):
        rows = [row for batch in task.batches(epoch) for row in batch[0]]
        counts = Counter(rows)
        assert sorted(counts) == [*SQUARES, *CREATURES]
        assert all(counts[row] == 1 for row in SQUARES)
        assert sorted(counts[row] for row in CREATURES) == [2, 2, 3]
    orders = [[batch[0] for batch in task.batches(epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert task.summary() == (
        f"10 training and 5 validation images, captions of 3 others, {len(mixture.vocabulary)} words"
    )


def test_batches_have_the_style_and_the_words_of_each_image(mixture):
    task = task_of(mixture, dataclasses.replace(MIXED, augment=False))
    for rows, counts, batch, texts in task.batches(0):
        assert counts and len(texts.probabilities) == 2
        assert batch.styles.tolist() == [int(row >= 11) for row in rows]
        for i, row in enumerate(rows):
            assert torch.equal(batch.images[i].permute(1, 2, 0), torch.from_numpy(mixture.image(row)))
            captions = mixture.captions(row)
            for word in range(len(mixture.vocabulary)):
                having = sum(word in caption for caption in captions) / len(captions)
                wanted = having if word >= len(SPECIALS) else 0
                assert batch.fractions[i, word].item() == pytest.approx(wanted)
    assert all(batch[3] is None for batch in task_of(mixture, QUICK).batches(0))
    plain = task_of(mixture, QUICK, word_rank=0)
    assert all(batch[2].fractions is None for batch in plain.batches(0))


def drawn(task: CaptionTask, epoch: int) -> list[tuple[int, str]]:
    """Row and caption of each caption that an epoch reads, sorted."""
    found = []
    for rows, _, batch, _ in task.batches(epoch):
        for index, ids in zip(batch.image_index.tolist(), batch.captions.tolist(), strict=True):
            found.append((rows[index], task.data.vocabulary.decode(ids)))
    return sorted(found)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_captions_per_image_are_drawn_without_repetition(count, mixture):
    task = task_of(mixture, dataclasses.replace(MIXED, captions_per_image=count))
    seen: dict[int, set[str]] = {}
    for epoch in range(8):
        captions = drawn(task, epoch)
        assert captions == drawn(task, epoch)  # drawn anew by a run that is resumed
        for row, times in Counter(task.rows).items():
            own, given = [text for each, text in captions if each == row], mixture.captions(row)
            assert len(own) == times * min(count or len(given), len(given))
            assert set(own) <= {mixture.vocabulary.decode(ids) for ids in given}
            if times == 1:
                assert len(set(own)) == len(own)
            seen.setdefault(row, set()).update(own)
    assert all(len(texts) == len(mixture.captions(row)) for row, texts in seen.items())  # each comes in time
    if count:
        assert drawn(task, 0) != drawn(task, 1)


def test_a_repeated_image_differs_within_an_epoch(mixture):
    """As one that comes in several epochs: other pixels, and other captions of it."""
    task = task_of(mixture)
    assert task.repeats == 3
    images, captions = [], set()
    for epoch in range(4):
        for rows, _, batch, _ in task.batches(epoch):
            for i, row in enumerate(rows):
                if row == 13:
                    images.append(batch.images[i])
                    captions.add(
                        task.data.vocabulary.decode(batch.captions[batch.image_index == i][0].tolist())
                    )
    assert len(images) >= 8
    assert not any(torch.equal(a, b) for k, a in enumerate(images) for b in images[:k])
    assert captions == set(ANIMALS["train"][2])


# ---- texts and words -------------------------------------------------------------------------------------------------


def test_texts_are_the_same_after_resuming_and_others_in_every_step(mixture):
    task = task_of(mixture, dataclasses.replace(MIXED, texts_per_step=8))
    first, again, later = ([batch[3] for batch in task.batches(epoch)] for epoch in (1, 1, 2))
    for one, other in zip(first, again, strict=True):
        assert_equal_tensors(vars(one), vars(other))
    noise = [texts.probabilities for texts in (*first, *later)]
    assert not any(torch.equal(a, b) for k, a in enumerate(noise) for b in noise[:k])
    assert {style for texts in first for style in texts.styles.tolist()} == {0, 1}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_images_plus_weighted_texts(smoothing, mixture):
    config = dataclasses.replace(MIXED, text_weight=0.3, word_loss_weight=0.7, label_smoothing=smoothing)
    task = task_of(mixture, config)
    task.start_epoch(0)
    batch = next(task.batches(0))
    loss, reported, items = task.loss(batch)
    images = caption_loss(task.model, batch[2], smoothing, word_loss_weight=0.7)
    texts = text_loss(task.model, batch[3], smoothing)
    torch.testing.assert_close(loss, images + 0.3 * texts)
    assert reported == pytest.approx(images.item())
    assert items == int((batch[2].captions != 0).sum())


def test_parameters_that_no_loss_reaches_do_not_learn(mixture):
    """DistributedDataParallel waits for the gradient of each parameter that requires one."""
    for config, frozen in (
        (MIXED, set()),
        (dataclasses.replace(MIXED, texts_per_step=0), {"null_image"}),
        (dataclasses.replace(MIXED, word_loss_weight=0.0), {"word_predictor"}),
        (dataclasses.replace(MIXED, objective="cider"), {"null_image", "word_predictor"}),
    ):
        task = task_of(mixture, config)
        task.start_epoch(0)
        task.loss(next(task.batches(0)))[0].backward()
        for name, parameter in task.model.named_parameters():
            learns = name.split(".")[0] not in frozen | {"backbone"}
            assert parameter.requires_grad == learns, name
            assert (parameter.grad is not None) == learns, name


def captions_of(mixture: Mixture) -> list[list[str]]:
    """The captions of all training images and of all photographs that are not there."""
    images = [mixture.references(row) for row in (*SQUARES, *CREATURES)]
    return [*images, *(caption for name in TEXTS for caption in TEXTS[name])]


def test_idf_counts_images_and_texts_with_each_word(mixture):
    documents = [set(" ".join(captions).split()) for captions in captions_of(mixture)]
    count, total = document_frequency(mixture, [*SQUARES, *CREATURES])
    assert total == len(documents) == 13
    wanted = [sum(word in words for words in documents) for word in mixture.vocabulary.words[4:]]
    assert count.tolist() == [0, 0, 0, 0, *wanted]
    idf = task_of(mixture).model.word_predictor.idf
    torch.testing.assert_close(idf, (13 / count.clamp_min(1)).log())
    model = captioner(mixture, **READING)
    model.word_predictor.idf.fill_(2.0)  # as of a model that was trained before
    CaptionTask(model, mixture, MIXED)
    assert (model.word_predictor.idf == 2).all()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_at_most_so_many_texts_count(limit, mixture, monkeypatch):
    monkeypatch.setattr(caption_task, "MAX_TEXTS", limit)
    assert document_frequency(mixture, [0])[1] <= 1 + limit


def test_texts_without_a_predictor_or_without_texts_are_refused(mixture, data):
    message(lambda: task_of(mixture, word_rank=0), "--texts-per-step 2", "add --word-rank")
    message(lambda: task_of(Mixture([data])), "--texts-per-step 2", "preprocess.py --texts")


# ---- self-critical training ------------------------------------------------------------------------------------------

CIDER = dataclasses.replace(QUICK, objective="cider", train_sample_n=2)


def test_self_critical_rows_have_several_captions(mixture):
    task = task_of(mixture, CIDER)
    assert sorted(set(task.rows)) == [1, 2, 4, 5, 11, 13]
    assert Counter(task.rows) == {1: 1, 2: 1, 4: 1, 5: 1, 11: 2, 13: 2}


def cider_of(mixture: Mixture, rows: list[int], row: int, caption: str) -> float:
    """CIDEr of a caption of `row`, where the document frequencies are those of `rows`."""
    references = [[[*ptb_tokenize(text), END] for text in mixture.references(each)] for each in rows]
    said = [[*caption.split(), END] if each == row else ["nothing"] for each in rows]
    return cider(said, references)[1][rows.index(row)] / 100


def test_rewards_have_the_document_frequencies_of_the_images_own_file(mixture):
    task = task_of(mixture, CIDER)
    reward = task.self_critical.workers.reward
    found, of_all = [], []
    for rows in ([1, 2, 4, 5], [11, 13]):
        for row in rows:
            for caption in ("a dog runs", "two squares", "a red bird", "red and yellow squares"):
                ids = mixture.vocabulary.encode(caption.split())
                found.append(reward((row, ids, True)))
                assert found[-1] == pytest.approx(cider_of(mixture, rows, row, caption), abs=1e-9)
                of_all.append(cider_of(mixture, [1, 2, 4, 5, 11, 13], row, caption))
    assert len(set(found)) > 5
    assert sum(abs(one - other) > 0.01 for one, other in zip(found, of_all, strict=True)) > 5


def test_rewards_do_not_depend_on_the_other_file(mixture, paths):
    alone = CaptionTask(captioner(CaptionDataset(paths[1])), CaptionDataset(paths[1]), CIDER)
    both = task_of(mixture, CIDER)
    for row, text in ((0, "a dog runs"), (2, "a bird sings"), (2, "the red bird")):
        one, other = (task.data.vocabulary.encode(text.split()) for task in (alone, both))
        reward = alone.self_critical.workers.reward((row, one, True))
        assert both.self_critical.workers.reward((11 + row, other, True)) == pytest.approx(reward) != 0


def test_a_self_critical_step_reads_words_and_styles_without_dropout(mixture):
    """The predictor's dropout would give the two passes different networks."""
    task = task_of(mixture, CIDER, word_dropout_rate=0.5)
    task.start_epoch(0)
    assert task.model.word_predictor.training
    batch = next(task.batches(0))
    losses = []
    for styles in (batch[2].styles, batch[2].styles, 1 - batch[2].styles):
        torch.manual_seed(0)
        batch[2].styles = styles
        losses.append(task.loss(batch)[0].item())
        assert not task.model.word_predictor.training
        task.start_epoch(0)
    assert losses[0] == losses[1] != losses[2]


# ---- validation ------------------------------------------------------------------------------------------------------


def test_validation_scores_each_file_and_their_mean(mixture):
    task = task_of(mixture)
    with torch.no_grad():
        task.model.word.weight *= 8  # so that captions end
    figures, lines = task.validate()
    wanted = {}
    for name, rows in (("squares", range(7, 10)), ("animals", range(14, 16))):
        model = task.model.eval()
        images = torch.stack([torch.from_numpy(mixture.image(row)).permute(2, 0, 1) for row in rows])
        styles = torch.tensor([mixture.styles.index(name)] * len(rows))
        with torch.no_grad():
            found = greedy(model, model.start(model.encode(images), styles))
        captions = [mixture.vocabulary.decode(hypothesis.tokens) for hypothesis in found]
        references = [[ptb_tokenize(text) for text in mixture.references(row)] for row in rows]
        wanted[name] = cider([ptb_tokenize(caption) for caption in captions], references)[0]
        said = [line for line in lines if line.startswith(f"{name}: CIDEr {wanted[name]:.1f}, ")]
        assert len(said) == 1 and "people: " in said[0]
        assert all(
            f"{mixture.file_name(row)}: {text}" in lines for row, text in zip(rows, captions, strict=True)
        )
    assert figures["CIDEr squares"] == pytest.approx(wanted["squares"])
    assert figures["CIDEr animals"] == pytest.approx(wanted["animals"])
    assert figures["CIDEr"] == pytest.approx(sum(wanted.values()) / 2)
    assert set(figures) == {"CIDEr", "CIDEr squares", "CIDEr animals", "repeats", "dangling", "length"}


def test_validation_figures_are_means_over_images(mixture, monkeypatch):
    """Of the quality of captions; CIDEr is the mean of the files."""
    task = task_of(mixture)
    given = iter([(10.0, Quality(1.0, 2.0, 5.0), []), (30.0, Quality(6.0, 0.0, 10.0), [])])
    monkeypatch.setattr(Validation, "__call__", lambda *_: next(given))
    figures, _ = task.validate()  # of three images, and of two
    wanted = {"CIDEr": 20.0, "CIDEr squares": 10.0, "CIDEr animals": 30.0}
    wanted |= {"repeats": (3 * 1 + 2 * 6) / 5, "dangling": 3 * 2 / 5, "length": (3 * 5 + 2 * 10) / 5}
    assert figures == pytest.approx(wanted)


def test_a_single_file_has_one_score(data):
    figures, lines = CaptionTask(captioner(data), data, QUICK).validate()
    assert set(figures) == {"CIDEr", "repeats", "dangling", "length"}
    assert not lines[0].startswith("squares")


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_run_on_a_mixture_equals_an_uninterrupted_one(cached, mixture, tmp_path):
    config = dataclasses.replace(MIXED, cache_features=cached, augment=not cached)
    changes = READING | {"styles": mixture.styles}
    history, lines = run(mixture, tmp_path / "whole", config, **changes)
    with pytest.raises(Interruption):
        run(mixture, tmp_path / "parts", config, stop_after=1, **changes)
    resumed, _ = run(mixture, tmp_path / "parts", config, resume=True)
    assert_equal_histories(resumed, history)
    whole, parts = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert_equal_tensors(parts.model.state_dict(), whole.model.state_dict())
    assert_equal_tensors(parts.extra, whole.extra)
    assert whole.config.styles == ("squares", "animals") and whole.vocabulary == mixture.vocabulary
    assert whole.training["data"].split() == [str(file.path) for file in mixture.files]
    assert "captions of 3 others" in lines[0]
    scores = [record["CIDEr"] for record in history]
    means = [np.mean([record[f"CIDEr {name}"] for name in mixture.styles]) for record in history]
    assert scores == pytest.approx(means)


PLAIN = ["a dog", "two cats sleep", "the boat"]
LOUD = ["wow , such a dog", "look , sleeping cats", "what a nice boat"]


def test_it_learns_the_style_of_each_file(tmp_path):
    """The same three photographs are in both files, so that only the style tells which caption to say."""
    for name, captions in (("plain", PLAIN), ("loud", LOUD)):
        records = [record(i, captions=(text,)) for i, text in enumerate(captions)]
        write(Source(name, "made for a test", records), tmp_path / f"{name}.h5", encoding="raw")
    mixture = mixture_of([tmp_path / "plain.h5", tmp_path / "loud.h5"])
    config = dataclasses.replace(QUICK, batch_size=6, augment=False, label_smoothing=0.0)
    task = task_of(mixture, config, embedding_size=32, lstm_size=64, word_rank=0)
    optimizer = torch.optim.Adam(task.model.parameters(), 0.02)
    for epoch in range(80):
        task.start_epoch(epoch)
        (batch,) = task.batches(epoch)
        loss, _, _ = task.loss(batch)
        if loss.item() < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = task.model.eval()
    images = torch.stack([torch.from_numpy(mixture.image(row)).permute(2, 0, 1) for row in range(3)])
    with torch.no_grad():
        for style, captions in enumerate((PLAIN, LOUD)):
            found = greedy(model, model.start(model.encode(images), torch.full((3,), style)))
            said = [mixture.vocabulary.decode(hypothesis.tokens) for hypothesis in found]
            assert said == [text.replace(" ,", "") for text in captions]
