"""The captioners beside this one: their published sizes, exhaustive search, and a small run of the whole comparison."""

import itertools
import sys
from dataclasses import replace

import pytest
import torch

from sca_caption.benchmarks import peer_models, peers
from sca_caption.benchmarks.peer_models import PEERS, SoftAttention, beam_search
from sca_caption.cli.inputs import DEMO

TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**TINY, "image_size": 32}


def tiny(name: str):
    """The peer with a network of few parameters, which reads images of 32 pixels."""
    if name == "BLIP-base":
        words = {"vocab_size": 40, "bos_token_id": 38, "sep_token_id": 37, "encoder_hidden_size": 24}
        return lambda: peer_models.build_blip({**TINY, **words}, {**VISION, "patch_size": 8})
    if name == "GIT-base":
        words = {"vocab_size": 40, "bos_token_id": 38, "eos_token_id": 37}
        return lambda: peer_models.build_git(**TINY, **words, vision_config={**VISION, "patch_size": 8})
    return lambda: SoftAttention(40, 16, "resnet18")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("BLIP-base", 224.0), ("GIT-base", 176.6)])
def test_transformers_models_have_the_published_parameters(name, millions):
    pytest.importorskip("transformers", reason="transformers comes with the extra peers")
    tiny(name)()  # imports what cannot be imported on the device meta
    with torch.device("meta"):
        model = PEERS[name].build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.slow
def test_soft_attention_has_the_parameters_of_its_description():
    with torch.device("meta"):
        model = SoftAttention()
    d, c, v = 512, 2048, 10_000
    attention = (c + 1) * d + (d + 1) * d + (d + 1)
    lstm = 4 * d * (d + c + d) + 8 * d
    decoder = attention + 2 * (c + 1) * d + (d + 1) * c + v * d + lstm + (d + 1) * v
    trunk = 44_549_160 - (c + 1) * 1000  # torchvision's ResNet-101 without its classifier
    assert sum(p.numel() for p in model.parameters()) == trunk + decoder


@torch.inference_mode()
def test_a_wide_beam_search_is_exhaustive():
    torch.manual_seed(1)
    model = SoftAttention(4, 6, "resnet18").eval()
    model.word.weight *= 20
    image = torch.randn(1, 3, 64, 64)
    maps = model.encode(image)

    def log_prob(words: tuple[int, ...]) -> float:
        (h, c), total = model.start(maps), 0.0
        for last, word in itertools.pairwise((0, *words)):
            logits, h, c = model.step(torch.tensor([last]), maps, h, c)
            total += float(logits.log_softmax(1)[0, word])
        return total

    best = max(itertools.product(range(4), repeat=3), key=log_prob)
    assert beam_search(model, image, 64, 3).tolist() == list(best)
    greedy = beam_search(model, image, 1, 3).tolist()
    assert log_prob(tuple(greedy)) <= log_prob(best)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_captions_have_the_given_length_and_batches_give_the_same(name, tmp_path):
    pytest.importorskip("transformers", reason="transformers comes with the extra peers")
    torch.manual_seed(0)
    peer = replace(PEERS[name], size=32 if "base" in name else 64)
    peer.save(tiny(name)(), tmp_path / "model")
    model = peer.load(str(tmp_path / "model")).eval()
    paths = [str(path) for path in sorted(DEMO.glob("*.jpg"))[:3]]
    together = peer_models.caption(peer, model, paths, 6)
    assert together == [peer_models.caption(peer, model, [path], 6)[0] for path in paths]
    start = len(together[0]) - 6  # of transformers, the word that begins captions
    assert start in (0, 1, 2) and len({len(words) for words in together}) == 1


@pytest.mark.slow
def test_the_table_has_a_row_per_captioner(tmp_path, monkeypatch, capsys, tiny_checkpoint):
    name = "ResNet-101, soft attention"
    pytest.importorskip("transformers", reason="transformers comes with the extra peers")
    monkeypatch.setattr(peers, "PEERS", {name: replace(PEERS[name], build=tiny(name))})
    flags = ["--images", "2", "--tokens", "3", "--threads", "1", "--checkpoint", str(tiny_checkpoint)]
    assert peers.main([str(DEMO), *flags]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows] == ["sca_caption", name]
    assert [row[5] == "-" for row in rows] == [False, True], "a search of one image at a time has no batches"
    for row in rows:
        numbers = [float(cell.split()[0]) for cell in row[2:5] if cell != "-"]
        assert len(numbers) == 3 and min(numbers) > 0


def test_without_transformers_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert peers.main([str(DEMO)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "[peers]'" in err
