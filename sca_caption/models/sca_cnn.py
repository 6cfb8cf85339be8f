"""SCA-CNN: an LSTM that attends, at every word, the channels and then the positions of a CNN's upper layers.

Chen et al., "SCA-CNN: Spatial and Channel-wise Attention in Convolutional Networks for Image Captioning", CVPR 2017.

Shapes: B images, N rows (partial captions; several rows may share an image), P parents (see `State`), T words,
W vocabulary size, C channels, m = H * W positions, d LSTM size, E embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.mkldnn import is_available as mkldnn

from sca_caption.attention.sca import ConditionedAttention, mean_over_positions, pool_modulated, pool_shared
from sca_caption.config import ModelConfig
from sca_caption.decoding import teacher_forcing
from sca_caption.decoding.teacher_forcing import Forced
from sca_caption.images import MEAN, STD
from sca_caption.models.backbone import Backbone
from sca_caption.training.batches import Batch
from sca_caption.vocab import PAD

ROWS_AT_ONCE = 48  # what a CPU attends at once to decode: the maps of more do not fit in its caches


@dataclass
class State:
    """Where N partial captions stand. Image tensors are kept once an image; `image` says which one is read.
    To train they are copied once for each caption (`spread`): a copy at every word would be kept for the way back.

    Attention reads the image and the hidden state but not the word that comes next, so captions that have their words
    so far in common have it in common too: P parents are attended, and `parent` says which one a row continues.
    """

    maps: tuple[Tensor, ...]  # V1 (B, C, H, W) and the carried tensors, a row an image
    keys: Tensor | None  # spatial keys of V1 (B, m, k), where they do not depend on the hidden state
    input_weights: tuple[
        Tensor, Tensor
    ]  # the LSTM's for the embedding (4d, E) and for the pooled map (4d, C)
    image: Tensor  # (P,) indices into maps
    hidden: Tensor  # (P, d)
    cell: Tensor  # (P, d)
    parent: Tensor | None = None  # (N,) indices into hidden; None: a row each
    is_spread: bool = False  # maps and keys have P rows, one for each of hidden
    # Of the last step, one pair an attended layer: beta (N, C) or None, alpha (N, m) or None.
    attention: tuple[tuple[Tensor | None, Tensor | None], ...] = ()

    def __len__(self) -> int:
        return len(self.hidden if self.parent is None else self.parent)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def select(self, rows: Tensor | slice) -> "State":
        """Keep, reorder or repeat rows; those that repeat one are attended as one."""
        rows = rows if self.parent is None else self.parent[rows]
        parent = None
        if isinstance(rows, Tensor):
            distinct, inverse = rows.unique(return_inverse=True)
            if len(distinct) < len(rows):
                rows, parent = distinct, inverse
        image, hidden, cell = (x[rows] for x in (self.image, self.hidden, self.cell))
        after = replace(self, image=image, hidden=hidden, cell=cell, parent=parent, attention=())
        return after._with_rows(rows) if self.is_spread else after

    def spread(self) -> "State":
        return self if self.is_spread else replace(self._with_rows(self.image), is_spread=True)

    def _with_rows(self, rows: Tensor | slice) -> "State":
        keys = None if self.keys is None else self.keys[rows]
        return replace(self, maps=tuple(rows_of(x, rows) for x in self.maps), keys=keys)


class SCACNN(nn.Module):
    """The whole model. `config.layers` must hold layer names (see `backbones.attended_layers`).

    backbone_weights: ImageNet weights in torchvision's layout, or None to start at random.
    """

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, backbone_weights: dict[str, Tensor] | None = None
    ):
        super().__init__()
        self.config = config
        self.backbone = Backbone(
            config.backbone, config.layers, backbone_weights, config.backbone_attention, config.backbone_at
        )
        self.attention = nn.ModuleDict(
            {
                layer.replace(".", "_"): ConditionedAttention(
                    channels, config.lstm_size, config.attention_width, config.attention
                )
                for layer, channels in zip(self.backbone.layers, self.backbone.channels, strict=True)
            }
        )
        top, d, e = self.backbone.channels[-1], config.lstm_size, config.embedding_size
        self.embedding = nn.Embedding(vocabulary_size, e, padding_idx=PAD)
        self.initial_hidden = nn.Linear(top, d)
        self.initial_cell = nn.Linear(top, d)
        self.lstm = nn.LSTMCell(e + top, d)
        self.hidden_to_word = nn.Linear(d, e)  # W_h
        self.word = nn.Linear(e, vocabulary_size)  # W_o
        self.dropout, self.feature_dropout = nn.Dropout(config.dropout), nn.Dropout2d(config.feature_dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.word.weight, -0.1, 0.1)
        nn.init.zeros_(self.word.bias)
        if config.tie_embeddings:
            self.word.weight = self.embedding.weight
        # Not in the state dict: they belong to the pixels, not to what was learnt.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The run-once part: images (B, 3, S, S) uint8 -> V1 (B, C, H, W) and carried tensors.

        Stored features (a tuple of such tensors) pass through, as float32. In training some channels of V1 are hidden,
        from all words of all captions of an image.
        """
        if isinstance(images, Tensor):
            maps = self.backbone.trunk((images / 255 - self.mean) / self.std)
        else:
            maps = tuple(x.float() for x in images)
        return (self.feature_dropout(maps[0]), *maps[1:])

    def start(self, encoded: tuple[Tensor, ...]) -> State:
        """The state before the first word, a row an image: h and c from the top feature without attention."""
        maps = encoded
        for i in range(len(self.attention) - 1):
            maps = self.backbone.segment(i, maps[0], maps[1:])
        top = self._normalise(mean_over_positions(maps[0]))  # (B, C)
        rows = torch.arange(top.shape[0], device=top.device)
        first = next(iter(self.attention.values()))
        of_word, of_image = self.lstm.weight_ih.split((self.config.embedding_size, top.shape[1]), 1)
        return State(
            encoded,
            first.prepare(encoded[0]),
            (of_word.contiguous(), of_image.contiguous()),
            rows,
            torch.tanh(self.initial_hidden(top)),
            torch.tanh(self.initial_cell(top)),
        )

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One word further: tokens (N,) are the words before -> logits (N, W), and the state after."""
        if len(self.attention) == 1 and state.keys is not None:
            pooled, weights = self._attend_shared(state)
        else:
            state = state.spread() if torch.is_grad_enabled() and state.parent is None else state
            pooled, weights = self._attend(state)
        of_word, of_image = state.input_weights
        gates = linear(self._normalise(pooled), of_image, self.lstm.bias_ih)  # (P, 4d)
        gates = gates + linear(state.hidden, self.lstm.weight_hh, self.lstm.bias_hh)
        image, cell = state.image, state.cell
        if state.parent is not None:
            image, gates, cell = (x.index_select(0, state.parent) for x in (image, gates, cell))
            weights = tuple(tuple(x if x is None else x[state.parent] for x in pair) for pair in weights)
        embedded = self.dropout(self.embedding(tokens))  # (N, E)
        enter, keep, new, show = (gates + linear(embedded, of_word)).chunk(4, 1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        hidden = show.sigmoid() * cell.tanh()
        spoken = torch.tanh(linear(hidden, self.hidden_to_word.weight, self.hidden_to_word.bias) + embedded)
        logits = linear(self.dropout(spoken), self.word.weight, self.word.bias)
        after = replace(state, image=image, hidden=hidden, cell=cell, parent=None, attention=weights)
        return logits, after

    def _attend(self, state: State) -> tuple[Tensor, tuple]:
        """Attend every layer, re-running the CNN between them: the pooled top (P, C) and each layer's weights."""
        if state.device.type == "cpu" and not torch.is_grad_enabled() and len(state.hidden) > ROWS_AT_ONCE:
            parts = [
                self._attend(replace(state, image=image, hidden=hidden))
                for image, hidden in zip(
                    state.image.split(ROWS_AT_ONCE), state.hidden.split(ROWS_AT_ONCE), strict=True
                )
            ]
            pooled, weights = zip(*parts, strict=True)
            return torch.cat(pooled), joined(weights)
        state = state.spread()
        maps, keys = state.maps, state.keys  # (P, C, H, W), (P, m, k)
        *lower, top = self.attention.values()
        weights = []
        for i, attend in enumerate(lower):
            attended, beta, alpha = attend(maps[0], state.hidden, keys)
            weights.append((beta, alpha))
            maps, keys = self.backbone.segment(i, attended, maps[1:]), None
        weights.append(top.weights(maps[0], state.hidden, keys))
        # Of the last attended map only the average is needed.
        return pool_modulated(maps[0], *weights[-1]), tuple(weights)

    def _attend_shared(self, state: State) -> tuple[Tensor, tuple]:
        """The same for one layer that starts with spatial attention, S or S-C, without copying V for every row."""
        (attend,) = self.attention.values()
        alpha = attend.spatial(state.keys.index_select(0, state.image), state.hidden)
        pooled, beta = pool_shared(state.maps[0], alpha, state.image), None
        if attend.channel is not None:  # it reads the mean of the spatially modulated map, which is `pooled`
            beta = attend.channel.from_means(pooled, state.hidden)
            pooled = pooled * beta * beta.shape[1]
        return pooled, ((beta, alpha),)

    def loss(
        self,
        batch: Batch,
        label_smoothing: float = 0.0,
        attention_penalty: float = 0.0,
        force: Callable[..., Forced] = teacher_forcing.run,
        further: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Mean cross-entropy a word (nats), with teacher forcing, over all captions of all images of the batch.

        attention_penalty adds that weight times the mean of (1 - sum_t alpha_t)^2 (Xu et al. 2015, eq. 14); `further` is
        another term, of the logits (M, W). force: `teacher_forcing.run` with its options.
        """
        state = self.start(self.encode(batch.images)).select(batch.image_index)
        forced = force(self, state, batch.captions)
        loss = F.cross_entropy(forced.logits, forced.targets, label_smoothing=label_smoothing)
        if attention_penalty and forced.alphas[0]:
            loss = loss + attention_penalty * _attention_coverage(forced.alphas)
        if further is not None:
            loss = loss + further(forced.logits)
        return loss

    def _normalise(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled, dim=1) * self.config.pool_norm


def rows_of(maps: Tensor, index: Tensor | slice) -> Tensor:
    """maps[index], kept in the channels-last layout that 1x1 convolutions and attention are fast in."""
    if maps.dim() != 4 or isinstance(index, slice):
        return maps[index]
    return maps.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def joined(parts: Sequence[tuple[tuple[Tensor | None, ...], ...]]) -> tuple[tuple[Tensor | None, ...], ...]:
    """Each layer's (beta, alpha) of several sets of rows -> of all of them."""
    return tuple(
        tuple(None if each[0] is None else torch.cat(each) for each in zip(*layer, strict=True))
        for layer in zip(*parts, strict=True)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b; to decode on a CPU, by oneDNN, whose products are twice as fast as torch's BLAS on some processors."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.dtype != torch.float32 or not mkldnn():
        return F.linear(x, weight, bias)
    return torch._C._nn.mkldnn_linear(x.to_mkldnn(), weight, bias).to_dense()


def _attention_coverage(alphas: list[list[Tensor]]) -> Tensor:
    """Mean over captions, positions and layers of (1 - sum_t alpha_t)^2; later steps may have fewer rows."""
    rows = len(alphas[0][0])
    penalties = []
    for layer in zip(*alphas, strict=True):
        total = sum(F.pad(alpha, (0, 0, 0, rows - len(alpha))) for alpha in layer)
        penalties.append((1 - total).square().mean())
    return torch.stack(penalties).mean()
