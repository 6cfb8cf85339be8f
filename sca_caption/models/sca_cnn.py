"""SCA-CNN: an LSTM that attends to the channels and positions of a CNN's upper layers at every word.

Chen et al., "SCA-CNN: Spatial and Channel-wise Attention in Convolutional Networks for Image Captioning", CVPR 2017
(arXiv 1611.05594). With V^l the map of attended layer l, h the LSTM's hidden state and y a word, one step computes

    V^l = CNN^l(X^(l-1)),  X^l = V^l * beta^l * C * alpha^l * m     attention, layer by layer (see `attention.sca`)
    v = mean of X^L over its positions, scaled to length `pool_norm`
    i, f, g, o = W_ih [E y_(t-1); v] + W_u u + b_ih + W_hh h_(t-1) + b_hh    the LSTM, as torch.nn.LSTMCell
    c_t = sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t)
    logits = W_o tanh(W_h h_t + E y_(t-1))

The authors' code multiplies the softmax weights beta by C and alpha by m, so that the map keeps its scale.

u is not in the paper: E q + s, where q are the words that the image predicts (see `word_predictor`), and s is a learnt
vector of the style, that is of the data set whose manner the caption shall have. A model has either, both or none.

Shapes: B images, N rows (partial captions; several rows may belong to one image), P parents (see `State`), T words,
W vocabulary size, C channels, m = H * W positions, d LSTM size, E embedding size, k attention width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.mkldnn import is_available as mkldnn

from sca_caption.attention.common import in_exported_graph
from sca_caption.attention.sca import ConditionedAttention, mean_over_positions, pool_modulated, pool_shared
from sca_caption.config import ModelConfig
from sca_caption.images import MEAN, STD
from sca_caption.models.backbone import Backbone
from sca_caption.models.efficientnet_lite import HEAD_CHANNELS
from sca_caption.models.word_predictor import WordPredictor
from sca_caption.runtime.errors import UserError, choice
from sca_caption.vocab import PAD

ROWS_AT_ONCE = 48  # attended in one pass while decoding on a CPU; the maps of more rows exceed its caches
LayerWeights = tuple[Tensor | None, Tensor | None]  # beta (N, C) and alpha (N, m), None if the layer has none


@dataclass
class State:
    """The decoder's state for N partial captions (rows).

    Image tensors are stored once per image, and `image` holds each parent's index into them. In training, `spread`
    copies them to one per row before the first step, because autograd would otherwise keep a copy for every word.

    Attention depends on the image and the hidden state but not on the word that comes next. Rows that share their
    words so far therefore share one parent: attention runs on P parents, and `parent` maps each row to its parent.
    """

    # V1 (B, C, H, W) and the carried tensors (see `Backbone`), one per image; () for captions without an image
    maps: tuple[Tensor, ...]
    keys: Tensor | None  # spatial keys of V1 (B, m, k) if they do not depend on the hidden state, else None
    input_weights: tuple[Tensor, Tensor]  # W_ih in two parts: (4d, E) for the word, (4d, C) for the image
    image: Tensor  # (P,) indices into maps
    hidden: Tensor  # (P, d)
    cell: Tensor  # (P, d)
    parent: Tensor | None = None  # (N,) indices into hidden; None means that each row is its own parent
    is_spread: bool = False  # True if maps and keys have P entries, one per row of hidden
    attention: tuple[LayerWeights, ...] = ()  # of the last step, one pair per attended layer
    context: Tensor | None = None  # W_u u (B, 4d), one per image
    words: Tensor | None = None  # logits of the words that the image predicts (B, W), one per image
    features: Tensor | None = (
        None  # pooled map (B, C) of the CNN's own last convolution, or V1 if it has no neck
    )

    def __len__(self) -> int:
        return len(self.hidden if self.parent is None else self.parent)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def select(self, rows: Tensor | slice) -> "State":
        """Keep, reorder or repeat rows. Repeated rows share one parent, so attention runs once for all of them."""
        rows = rows if self.parent is None else self.parent[rows]
        parent = None
        if isinstance(rows, Tensor):
            distinct, inverse = rows.unique(return_inverse=True)
            if len(distinct) < len(rows):
                rows, parent = distinct, inverse
        image, hidden, cell = (x[rows] for x in (self.image, self.hidden, self.cell))
        after = replace(self, image=image, hidden=hidden, cell=cell, parent=parent, attention=())
        return after._with_maps_of(rows) if self.is_spread else after

    def spread(self) -> "State":
        """Copy the image tensors to one per parent."""
        return self if self.is_spread else replace(self._with_maps_of(self.image), is_spread=True)

    def _with_maps_of(self, index: Tensor | slice) -> "State":
        keys = None if self.keys is None else self.keys[index]
        return replace(self, maps=tuple(gather_rows(x, index) for x in self.maps), keys=keys)


class SCACNN(nn.Module):
    """The captioner. `config.layers` must hold layer names (see `backbone.attended_layers`).

    backbone_weights: ImageNet weights as `pretrained_weights` returns them, or None for random initialisation.
    """

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, backbone_weights: dict[str, Tensor] | None = None
    ):
        super().__init__()
        self.config = config
        self.backbone = Backbone(
            config.backbone,
            config.layers,
            backbone_weights,
            config.backbone_attention,
            config.backbone_at,
            config.neck,
        )
        self.unattended = config.unattended  # how many of the backbone's layers, the lowest ones
        self.attended = self.backbone.layers[self.unattended :]
        attended_channels = self.backbone.channels[self.unattended :]
        if not self.attended:
            raise UserError(
                f"--unattended {config.unattended} leaves no layer; there are {len(config.layers)}"
            )
        self.attention = nn.ModuleDict(
            {
                layer.replace(".", "_"): ConditionedAttention(
                    channels, config.lstm_size, config.attention_width, config.attention
                )
                for layer, channels in zip(self.attended, attended_channels, strict=True)
            }
        )
        C, d, E = self.backbone.channels[-1], config.lstm_size, config.embedding_size
        self.embedding = nn.Embedding(vocabulary_size, E, padding_idx=PAD)
        self.initial_hidden = nn.Linear(C, d)
        self.initial_cell = nn.Linear(C, d)
        self.lstm = nn.LSTMCell(E + C, d)
        self.hidden_to_word = nn.Linear(d, E)  # W_h
        self.word = nn.Linear(E, vocabulary_size)  # W_o
        self.word_predictor: WordPredictor | None = None
        self.null_image: nn.Parameter | None = None
        self.style: nn.Embedding | None = None
        self.context: nn.Linear | None = None
        if config.word_rank:
            seen = C if self.backbone.head is None else HEAD_CHANNELS
            self.word_predictor = WordPredictor(
                seen, config.word_rank, vocabulary_size, config.word_dropout_rate
            )
            self.null_image = nn.Parameter(torch.zeros(C))  # v of a caption without a photograph
        if config.styles:
            self.style = nn.Embedding(len(config.styles), E)
            nn.init.uniform_(self.style.weight, -0.1, 0.1)
        if config.word_rank or config.styles:
            self.context = nn.Linear(E, 4 * d, bias=False)  # W_u
        self.default_style = 0  # index into config.styles
        self.dropout, self.feature_dropout = nn.Dropout(config.dropout), nn.Dropout2d(config.feature_dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.word.weight, -0.1, 0.1)
        nn.init.zeros_(self.word.bias)
        if config.tie_embeddings:
            self.word.weight = self.embedding.weight
        # Not in the state dict, because mean and std are constants of the image transform.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def set_style(self, name: str) -> None:
        """Make `name` the default style. Raises UserError if the model has no such style."""
        if not self.config.styles:
            raise UserError(f"--style {name}: this model has only one style; leave the flag out")
        self.default_style = self.config.styles.index(choice(name, self.config.styles, "style"))

    def encode(self, images: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run the CNN up to the first attended layer, once per image.

        images: uint8 (B, 3, S, S), or stored features (a tuple of tensors as this method returns them), which are only
        converted to float32. Returns V1 (B, C, H, W) and the carried tensors. In training, `feature_dropout` zeroes
        whole channels of V1, the same ones for all words and captions of an image.
        """
        if isinstance(images, Tensor):
            maps = self.backbone.trunk((images / 255 - self.mean) / self.std)
        else:
            maps = tuple(x.float() for x in images)
        return (self.feature_dropout(maps[0]), *maps[1:])

    def start(self, encoded: tuple[Tensor, ...], styles: Tensor | None = None) -> State:
        """The state before the first word, one row per image.

        h_0 = tanh(W v + b) and c_0 = tanh(W' v + b'), where v is the pooled top map without attention. styles: index of
        each image's style (B,), by default `default_style`.
        """
        maps, below, lowest_maps = encoded, encoded[0], encoded
        for layer in range(len(self.backbone.layers) - 1):
            below = maps[0]
            maps = self.backbone.segment(layer, maps[0], maps[1:])
            if layer < self.unattended:
                lowest_maps = maps
        pooled = mean_over_positions(maps[0])  # (B, C)
        lowest = self._attention_by_layer()[0]
        logits = probabilities = None
        head = self.backbone.head
        features = mean_over_positions(encoded[0] if head is None else head(below))
        if self.word_predictor is not None:
            logits = self.word_predictor(pooled if head is None else features)
            probabilities = (
                logits.detach().sigmoid()
            )  # words are learnt from captions alone, not from the decoder
        state = self._initial_state(self._normalize(pooled), probabilities, styles)
        keys = lowest.prepare(lowest_maps[0])
        return replace(state, maps=lowest_maps, keys=keys, words=logits, features=features)

    def start_without_image(self, probabilities: Tensor, styles: Tensor | None = None) -> State:
        """The state before the first word of captions whose photograph is not known.

        probabilities: (B, W), the fraction of captions that contain each word, which an image would predict.
        Needs a model with a word predictor.
        """
        assert self.null_image is not None
        return self._initial_state(self.null_image.expand(len(probabilities), -1), probabilities, styles)

    def _initial_state(self, v: Tensor, probabilities: Tensor | None, styles: Tensor | None) -> State:
        """The state for features v (B, C), the words that an image predicts (B, W) and styles (B,), without maps."""
        for_word, for_image = self.lstm.weight_ih.split((self.config.embedding_size, v.shape[1]), 1)
        return State(
            maps=(),
            keys=None,
            input_weights=(for_word.contiguous(), for_image.contiguous()),
            image=torch.arange(v.shape[0], device=v.device),
            hidden=torch.tanh(self.initial_hidden(v)),
            cell=torch.tanh(self.initial_cell(v)),
            context=self._context(v.shape[0], probabilities, styles),
        )

    def _context(self, images: int, probabilities: Tensor | None, styles: Tensor | None) -> Tensor | None:
        """W_u u (B, 4d), or None for a model without predicted words and styles."""
        u = None
        if self.word_predictor is not None and probabilities is not None:
            u = self.word_predictor.query(probabilities) @ self.embedding.weight
        if self.style is not None:
            if styles is None:
                styles = torch.full((images,), self.default_style, device=self.style.weight.device)
            u = self.style(styles) if u is None else u + self.style(styles)
        return None if u is None or self.context is None else self.context(u)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Predict the next word: previous words' ids (N,) -> logits (N, W), and the state after the step.

        The equations are in the module's docstring. All terms that do not depend on the previous word are computed
        once per parent.
        """
        attention: tuple[LayerWeights, ...] = ()
        if not state.maps:
            assert self.null_image is not None
            v = self.null_image.expand(len(state.hidden), -1)
        elif len(self.attention) == 1 and state.keys is not None:
            pooled, attention = self._attend_shared_maps(state)  # (P, C)
            v = self._normalize(pooled)
        else:
            if torch.is_grad_enabled() and state.parent is None:
                state = state.spread()
            pooled, attention = self._attend(state)
            v = self._normalize(pooled)
        for_word, for_image = state.input_weights
        gates = linear(v, for_image, self.lstm.bias_ih)  # (P, 4d)
        if state.context is not None:
            gates = gates + state.context.index_select(0, state.image)
        gates = gates + linear(state.hidden, self.lstm.weight_hh, self.lstm.bias_hh)
        image, cell = state.image, state.cell
        if state.parent is not None:  # P parents -> N rows
            image, gates, cell = (x.index_select(0, state.parent) for x in (image, gates, cell))
            attention = tuple(
                (_take(beta, state.parent), _take(alpha, state.parent)) for beta, alpha in attention
            )

        embedded = self.dropout(self.embedding(tokens))  # (N, E)
        i, f, g, o = (gates + linear(embedded, for_word)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()  # (N, d)
        output = torch.tanh(linear(hidden, self.hidden_to_word.weight, self.hidden_to_word.bias) + embedded)
        logits = linear(self.dropout(output), self.word.weight, self.word.bias)  # (N, W)
        after = replace(state, image=image, hidden=hidden, cell=cell, parent=None, attention=attention)
        return logits, after

    def _attend(self, state: State) -> tuple[Tensor, tuple[LayerWeights, ...]]:
        """Attend layer by layer: the pooled top map (P, C), and beta and alpha of each layer.

        The CNN's segment between two attended layers runs again at every word, on the attended map.
        """
        if state.device.type == "cpu" and not torch.is_grad_enabled() and len(state.hidden) > ROWS_AT_ONCE:
            parts = [
                self._attend(replace(state, image=image, hidden=hidden))
                for image, hidden in zip(
                    state.image.split(ROWS_AT_ONCE), state.hidden.split(ROWS_AT_ONCE), strict=True
                )
            ]
            maps_of_parts, weights_of_parts = zip(*parts, strict=True)
            return torch.cat(maps_of_parts), concat_weights(weights_of_parts)
        state = state.spread()
        maps, keys = state.maps, state.keys  # (P, C, H, W), (P, m, k)
        *lower, top = self._attention_by_layer()
        weights: list[LayerWeights] = []
        for layer, attend in enumerate(lower):
            attended, beta, alpha = attend(maps[0], state.hidden, keys)
            weights.append((beta, alpha))
            maps, keys = self.backbone.segment(self.unattended + layer, attended, maps[1:]), None
        weights.append(top.weights(maps[0], state.hidden, keys))
        # The attended top map itself is not needed, only its mean over positions.
        return pool_modulated(maps[0], *weights[-1]), tuple(weights)

    def _attend_shared_maps(self, state: State) -> tuple[Tensor, tuple[LayerWeights, ...]]:
        """Compute `_attend` for one layer in mode S or S-C without copying V for every row."""
        (attend,) = self._attention_by_layer()
        assert attend.spatial is not None and state.keys is not None
        alpha = attend.spatial(state.keys.index_select(0, state.image), state.hidden)
        pooled, beta = pool_shared(state.maps[0], alpha, state.image), None
        # Channel attention reads the mean of the modulated map, which is `pooled`.
        if attend.channel is not None:
            beta = attend.channel.from_means(pooled, state.hidden)
            pooled = pooled * beta * beta.shape[1]
        return pooled, ((beta, alpha),)

    def _attention_by_layer(self) -> list[ConditionedAttention]:
        """The attention of each attended layer, lowest first."""
        return cast(list[ConditionedAttention], list(self.attention.values()))

    def _normalize(self, pooled: Tensor) -> Tensor:
        """Scale each row of (N, C) to the length `pool_norm`."""
        return F.normalize(pooled, dim=1) * self.config.pool_norm


def gather_rows(x: Tensor, index: Tensor | slice) -> Tensor:
    """x[index]. Maps keep the channels-last memory layout, in which 1x1 convolutions and attention are fast."""
    if x.dim() != 4 or isinstance(index, slice):
        return x[index]
    if in_exported_graph():  # onnxruntime has layouts of its own
        return x.index_select(0, index)
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def concat_weights(parts: Sequence[tuple[LayerWeights, ...]]) -> tuple[LayerWeights, ...]:
    """Concatenate the attention weights of several sets of rows, layer by layer."""
    return tuple(
        (_concat([beta for beta, _ in layer]), _concat([alpha for _, alpha in layer]))
        for layer in zip(*parts, strict=True)
    )


def _concat(weights: list[Tensor | None]) -> Tensor | None:
    present = [each for each in weights if each is not None]
    return torch.cat(present) if present else None


def _take(weights: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if weights is None else weights[rows]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. While decoding on a CPU, oneDNN computes it: twice as fast as torch's BLAS on some processors."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.dtype != torch.float32 or not mkldnn():
        return F.linear(x, weight, bias)
    return torch._C._nn.mkldnn_linear(x.to_mkldnn(), weight, bias).to_dense()
