"""The captioners that `benchmarks.peers` sets beside this one, and one measurement of one of them.

BLIP-base (Li et al., ICML 2022, arXiv 2201.12086) and GIT-base (Wang et al., TMLR 2022, arXiv 2205.14100) are those of
transformers. The third is Show, Attend and Tell (Xu et al., ICML 2015, arXiv 1502.03044) in its usual form: ResNet-101
at 256 x 256 pixels pooled to 14 x 14 positions, gated soft attention, an LSTM of 512, and a beam search of one image at
a time. Random weights take the time of trained ones, but do not end captions, so all captions get a fixed length.

A measurement is a process, `python -m sca_caption.benchmarks.peer_models NAME MODE FOLDER TOKENS IMAGE ...`, which
prints JSON. It imports little, so that a first caption takes no longer than in a program of the peer's own.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

BATCH_SIZE = 16
STATUS = Path("/proc/self/status")
# Means and standard deviations of the pixels of ImageNet and of CLIP's data.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class SoftAttention(nn.Module):
    """Show, Attend and Tell with soft attention (equations 1 to 7 and 13); the context is gated (section 4.2.1)."""

    def __init__(self, vocabulary: int = 10_000, width: int = 512, backbone: str = "resnet101"):
        from sca_caption.runtime.torchvision_compat import torchvision

        super().__init__()
        self.settings = {"vocabulary": vocabulary, "width": width, "backbone": backbone}
        network = getattr(torchvision.models, backbone)(weights=None)
        channels = network.fc.in_features
        self.encoder = nn.Sequential(*list(network.children())[:-2])
        self.initial_hidden, self.initial_cell = nn.Linear(channels, width), nn.Linear(channels, width)
        self.visual, self.hidden = nn.Linear(channels, width), nn.Linear(width, width)
        self.score, self.gate = nn.Linear(width, 1), nn.Linear(width, channels)
        self.embedding, self.word = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.lstm = nn.LSTMCell(width + channels, width)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, 3, 256, 256) -> annotation vectors (B, 196, C)."""
        return F.adaptive_avg_pool2d(self.encoder(x), 14).flatten(2).transpose(1, 2)

    def start(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        mean = maps.mean(1)
        return torch.tanh(self.initial_hidden(mean)), torch.tanh(self.initial_cell(mean))

    def step(self, words: Tensor, maps: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Previous words (N,), annotation vectors (N, L, C) and the state -> logits (N, W) and the next state."""
        scores = self.score(F.relu(self.visual(maps) + self.hidden(h)[:, None]))  # (N, L, 1)
        context = (maps * scores.softmax(1)).sum(1) * torch.sigmoid(self.gate(h))
        h, c = self.lstm(torch.cat((self.embedding(words), context), 1), (h, c))
        return self.word(h), h, c


def beam_search(model: SoftAttention, image: Tensor, beam_size: int, tokens: int) -> Tensor:
    """The best caption found of one image (1, 3, 256, 256), as `tokens` word ids; word 0 begins captions."""
    maps = model.encode(image).expand(beam_size, -1, -1)
    h, c = model.start(maps)
    words, scores = torch.zeros(beam_size, 1, dtype=torch.long), torch.full((beam_size, 1), -torch.inf)
    scores[0] = 0  # all beams are the same before the first word
    for _ in range(tokens):
        logits, h, c = model.step(words[:, -1], maps, h, c)
        total = scores + logits.log_softmax(1)
        best, choices = total.flatten().topk(beam_size)
        rows, following = choices // total.shape[1], choices % total.shape[1]
        words, scores = torch.cat((words[rows], following[:, None]), 1), best[:, None]
        h, c = h[rows], c[rows]
    return words[0, 1:]


@dataclass(frozen=True)
class Peer:
    """size, statistics: of its pixels. beam_size: its authors'. batches: whether its search takes several images."""

    size: int
    statistics: tuple
    beam_size: int
    batches: bool
    build: Callable[..., nn.Module]
    load: Callable[[str], nn.Module]
    save: Callable[[nn.Module, Path], None]


def transformers() -> Any:
    """The package, which imports torchvision."""
    from sca_caption.runtime.torchvision_compat import torchvision  # noqa: F401

    package = importlib.import_module("transformers")
    package.utils.logging.disable_progress_bar()
    return package


def build_blip(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> nn.Module:
    """BLIP-base as Salesforce/blip-image-captioning-base has it; the arguments change its settings."""
    package, own = transformers(), {"num_attention_heads": 12, **(text or {})}
    config = package.BlipConfig(text_config=own, vision_config=vision or {})
    return package.BlipForConditionalGeneration(config)


def build_git(**settings: Any) -> nn.Module:
    """GIT-base as microsoft/git-base-coco has it; the arguments change its settings."""
    package = transformers()
    return package.GitForCausalLM(package.GitConfig(**settings))


def load_blip(name: str) -> nn.Module:
    return transformers().BlipForConditionalGeneration.from_pretrained(name)


def load_git(name: str) -> nn.Module:
    return transformers().GitForCausalLM.from_pretrained(name)


def save_pretrained(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def load_soft_attention(folder: str) -> nn.Module:
    from safetensors.torch import load_model

    model = SoftAttention(**json.loads(Path(folder, "config.json").read_text(encoding="utf-8")))
    load_model(model, Path(folder, "model.safetensors"))
    return model


def save_soft_attention(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_model

    assert isinstance(model, SoftAttention)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.settings), encoding="utf-8")
    save_model(model, str(folder / "model.safetensors"))


PEERS = {
    "BLIP-base": Peer(384, CLIP, 3, True, build_blip, load_blip, save_pretrained),
    "GIT-base": Peer(224, CLIP, 4, True, build_git, load_git, save_pretrained),
    "ResNet-101, soft attention": Peer(
        256, IMAGENET, 5, False, SoftAttention, load_soft_attention, save_soft_attention
    ),
}


def pixels(paths: Sequence[str], size: int, statistics: tuple) -> Tensor:
    """Image files as (B, 3, size, size), normalised."""
    found = []
    for path in paths:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        found.append(np.asarray(resized, np.float32) / 255)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return (torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) - mean) / deviation


@torch.inference_mode()
def caption(peer: Peer, model: Any, paths: Sequence[str], tokens: int) -> list[list[int]]:
    """Captions of image files, as word ids after the first. tokens: of each; 0: as the model ends it, at most 20."""
    images = pixels(paths, peer.size, peer.statistics)
    if isinstance(model, SoftAttention):
        return [beam_search(model, image[None], peer.beam_size, tokens or 20).tolist() for image in images]
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens} if tokens else {"max_new_tokens": 20}
    return model.generate(pixel_values=images, num_beams=peer.beam_size, do_sample=False, **length).tolist()


def captioner(name: str, folder: str, tokens: int) -> tuple[Callable[[Sequence[str]], object], int]:
    """A function that captions image files, and the model's parameters. folder: its weights, our checkpoint."""
    if name == "sca_caption":
        from sca_caption.inference.captioning import CaptionPipeline

        pipeline = CaptionPipeline.load(folder, device="cpu")
        return lambda paths: [*pipeline.stream(paths)], sum(p.numel() for p in pipeline.sca_cnn.parameters())
    peer = PEERS[name]
    model = peer.load(folder).eval()
    return lambda paths: caption(peer, model, paths, tokens), sum(p.numel() for p in model.parameters())


def measure(name: str, mode: str, folder: str, tokens: int, paths: Sequence[str]) -> dict[str, float]:
    """Seconds and processor seconds per image, and this process's peak memory in bytes.

    mode: "first", one photograph without warming up; "singly", one at a time; "batches".
    """
    run, parameters = captioner(name, folder, tokens)
    size = 1 if mode in ("first", "singly") else BATCH_SIZE
    if mode != "first":
        run(paths[:1])  # warms up
    began, used = time.perf_counter(), time.process_time()
    for start in range(0, len(paths), size):
        run(paths[start : start + size])
    seconds, used = (time.perf_counter() - began) / len(paths), (time.process_time() - used) / len(paths)
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return {
        "seconds": seconds,
        "processor": used,
        "peak": int(peak.split()[1]) * 1024,
        "parameters": parameters,
    }


if __name__ == "__main__":
    own_name, own_mode, own_folder, own_tokens, *own_paths = sys.argv[1:]
    print(json.dumps(measure(own_name, own_mode, own_folder, int(own_tokens), own_paths)))
