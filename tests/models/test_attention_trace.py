"""Traces hold the attention of the decoding steps that generate a caption."""

import dataclasses

import numpy as np
import pytest
import torch

from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import trace, unattended_maps
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import BOS, Vocabulary
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner

CAPTIONS = [[4, 6, 10], [5, 7, 9, 12, 4], [8]]


def made_images(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("mode", ["S", "C", "S-C", "C-S"])
def test_a_trace_holds_the_attention_of_each_step(mode):
    model = tiny_captioner(config=dataclasses.replace(TINY, attention=mode))
    images = made_images(3)
    with torch.inference_mode():
        found = trace(model, model.start(model.encode(images)), CAPTIONS)
        for row, caption in enumerate(CAPTIONS):
            state, last = model.start(model.encode(images[row : row + 1])), BOS
            assert [layer.name for layer in found[row].layers] == list(TINY.layers)
            for t, word in enumerate(caption):
                logits, state = model.step(torch.tensor([last]), state)
                probability = logits.softmax(1)[0, word].item()
                assert found[row].probabilities[t] == pytest.approx(probability, rel=1e-4)
                for layer, (beta, alpha) in zip(found[row].layers, state.attention, strict=True):
                    assert (layer.channel is None) == ("C" not in mode) == (beta is None)
                    assert (layer.spatial is None) == ("S" not in mode) == (alpha is None)
                    if beta is not None:
                        np.testing.assert_allclose(layer.channel[t], beta[0], rtol=1e-4, atol=1e-7)
                    if alpha is not None:
                        assert layer.spatial.shape == (len(caption), 8, 8)
                        np.testing.assert_allclose(layer.spatial[t].ravel(), alpha[0], rtol=1e-4, atol=1e-7)
                last = word
            assert len(found[row].probabilities) == len(caption)


def test_unattended_maps_are_the_input_of_the_attention():
    model, images = tiny_captioner(), made_images(2)
    first, top = unattended_maps(model, images)
    with torch.no_grad():
        encoded = model.encode(images)
        state = model.start(encoded)  # h is computed from the mean of the top map
        pooled = torch.nn.functional.normalize(torch.from_numpy(top).mean((2, 3)), dim=1) * TINY.pool_norm
        torch.testing.assert_close(torch.tanh(model.initial_hidden(pooled)), state.hidden)
    np.testing.assert_array_equal(first, encoded[0])


def test_results_have_the_trace_of_their_best_caption(tiny_checkpoint, photos):
    pipeline = CaptionPipeline.load(tiny_checkpoint, batch_size=3)
    plain = [result.captions for result in pipeline.stream(photos)]
    for result, captions in zip(pipeline.stream(photos, traced=True), plain, strict=True):
        assert result.captions == captions and len(result.trace.probabilities) == len(captions[0].tokens)
        # The caption's log-probability includes the end word.
        words = np.log(result.trace.probabilities).sum()
        assert words >= captions[0].log_prob - 1e-4
    assert Vocabulary(TINY_WORDS).decode(captions[0].tokens) == captions[0].text


def test_several_models_have_no_common_attention(tiny_checkpoint, photos):
    pipeline = CaptionPipeline.load([tiny_checkpoint, tiny_checkpoint])
    with pytest.raises(UserError, match=r"attention of 2 models .*--checkpoint"):
        list(pipeline.stream(photos, traced=True))
