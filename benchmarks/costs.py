"""What the methods cost on paper: FLOPs, bytes and memory, counted from the shape of a model.

A multiplication and an addition are two FLOPs. Only matrix products and attention are counted:
norms, rotary turns and sums are some per mille of them. Attention is counted as a causal kernel
does it, one half of the square; `causal=False` counts the whole square, as
`torch.utils.flop_counter` does. *Bytes* are what has to move at least: weights once a call, and the
named arrays once in or once out. `gpu.py` holds these counts against what it measures, `scale.py`
makes the tables of `docs/scale.md` of them.
"""

from __future__ import annotations

from dataclasses import dataclass

SINK, RECENT = 128, 256
LEAST_BLOCK = 64
"""Queries that streaming attention takes at once, at least (`probes.streaming_heads`)."""


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind: gated MLP, grouped keys, no biases."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_mlp: int
    vocab: int
    tied: bool = False

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def attention(self) -> int:
        """Weights of one block's attention that a token is multiplied with."""
        return 2 * self.d_model * (self.heads + self.kv_heads) * self.d_head

    @property
    def mlp(self) -> int:
        """The same of its MLP."""
        return 3 * self.d_model * self.d_mlp

    @property
    def blocks(self) -> int:
        """The same of all blocks."""
        return self.layers * (self.attention + self.mlp)

    @property
    def weights(self) -> int:
        """All weights: embeddings, blocks, norms, unembedding."""
        embeddings = self.vocab * self.d_model * (1 if self.tied else 2)
        return embeddings + self.blocks + (2 * self.layers + 1) * self.d_model

    @property
    def units(self) -> int:
        """Hidden units of all MLPs."""
        return self.layers * self.d_mlp

    @property
    def all_heads(self) -> int:
        return self.layers * self.heads

    def kv_bytes(self, tokens: int, itemsize: int = 2) -> int:
        """Keys and values of a prompt in all layers."""
        return 2 * self.layers * self.kv_heads * self.d_head * tokens * itemsize


SMOLLM2 = Shape("SmolLM2-135M", 30, 9, 3, 576, 1536, 49152, tied=True)
LLAMA2_7B = Shape("Llama-2-7B", 32, 32, 32, 4096, 11008, 32000)
LLAMA3_8B = Shape("Llama-3-8B", 32, 32, 8, 4096, 14336, 128256)
SHAPES = (
    SMOLLM2,
    Shape("Llama-3.2-1B", 16, 32, 8, 2048, 8192, 128256, tied=True),
    LLAMA2_7B,
    LLAMA3_8B,
    Shape("Llama-2-13B", 40, 40, 40, 5120, 13824, 32000),
    Shape("Llama-3-70B", 80, 64, 8, 8192, 28672, 128256),
)


# -- passes -----------------------------------------------------------------------------------


def prefill_flops(
    shape: Shape, tokens: int, rows: int = 1, logits: int = 1, *, causal: bool = True
) -> int:
    """A forward pass over `rows` prompts of `tokens`, unembedded at `logits` positions of each."""
    linear = 2 * tokens * shape.blocks + 2 * logits * shape.d_model * shape.vocab
    return rows * (linear + attention_flops(shape, tokens, causal=causal))


def attention_flops(shape: Shape, tokens: int, *, causal: bool = True) -> int:
    """Scores and weighted values of one prompt in all layers."""
    pairs = tokens * (tokens + 1) // 2 if causal else tokens**2
    return 4 * shape.all_heads * shape.d_head * pairs


def weight_bytes(shape: Shape, itemsize: int = 2) -> int:
    """What a pass reads of the weights, however few its tokens are."""
    return itemsize * (shape.blocks + shape.d_model * shape.vocab)


def behind_flops(shape: Shape, prompt: int, new: int) -> int:
    """A pass over `new` tokens behind a cached prompt, unembedded at each."""
    pairs = new * prompt + new * (new + 1) // 2
    linear = 2 * new * (shape.blocks + shape.d_model * shape.vocab)
    return linear + 4 * shape.all_heads * shape.d_head * pairs


# -- heads: path patching ---------------------------------------------------------------------


def sweep_flops(shape: Shape, prompts: int = 1, tokens_read: int = 2) -> int:
    """Direct effects of all heads in one sweep, without the runs that give the states.

    A row a head is carried from its layer to the end: `H L (L + 1) / 2` evaluations of one MLP.
    """
    rows = shape.heads * shape.layers * (shape.layers + 1) // 2
    wide = shape.heads * shape.d_head * shape.d_model
    mlps = 2 * shape.mlp * (rows + shape.layers)
    outputs = 4 * shape.layers * wide + 2 * shape.heads * shape.d_model * rows
    return prompts * (mlps + outputs + 2 * tokens_read * shape.d_model * (shape.all_heads + 1))


def states_flops(shape: Shape, tokens: int, prompts: int = 1, *, causal: bool = True) -> int:
    """The two runs, original and corrupted, that a sweep reads its states from."""
    return 2 * prefill_flops(shape, tokens, prompts, causal=causal)


def total_end_flops(shape: Shape, tokens: int, prompts: int = 1, tokens_read: int = 2) -> int:
    """END total effects of all heads on a shared cache, without the runs."""
    rows = shape.heads * shape.layers * (shape.layers + 1) // 2
    scores = 4 * shape.heads * shape.d_head * tokens
    read = 2 * tokens_read * shape.d_model * shape.all_heads
    return prompts * (rows * (2 * (shape.attention + shape.mlp) + scores) + read)


def naive_sweep_flops(shape: Shape, tokens: int, prompts: int = 1) -> int:
    """The same effects by one full pass a head."""
    return shape.all_heads * prefill_flops(shape, tokens, prompts)


def states_bytes(shape: Shape, prompts: int, itemsize: int = 2) -> int:
    """Residual streams and head outputs at END of both runs."""
    wide = shape.d_model + shape.heads * shape.d_head
    return 2 * prompts * shape.layers * wide * itemsize


# -- neurons ------------------------------------------------------------------------------------


def activation_bytes(shape: Shape, prompts: int) -> int:
    """The pooled activations of all MLP units, float32."""
    return 4 * shape.units * prompts


def ranking_bytes(shape: Shape, prompts: int) -> int:
    """What ranking moves a score, step by step, with one positive column a prompt.

    Sort: 4 in, 8 of places out; scores in that order: 4 + 8 in, 4 out; ties: 8 in, 1 out; places
    back: 12 in, 4 out; one more: 4 in, 4 out; counts of the positives: 12 in, 4 out, sorted: 4 in,
    12 out, and four passes in float64: 64.
    """
    return (12 + 16 + 9 + 16 + 8 + 16 + 16 + 64) * shape.units * prompts


# -- long contexts ------------------------------------------------------------------------------


def rows_flops(shape: Shape, tokens: int, queries: int, spans: int) -> int:
    """Scores of the query rows in all heads, and their sums over labelled spans."""
    rows = shape.all_heads * queries
    return 2 * rows * tokens * (shape.d_head + spans) + 2 * shape.layers * queries * tokens * spans


def rows_bytes(shape: Shape, tokens: int, queries: int, itemsize: int = 2) -> int:
    """Keys of the prompt once in; the float32 scores of the rows out and in again."""
    keys = shape.layers * shape.kv_heads * shape.d_head * tokens * itemsize
    return keys + 8 * shape.all_heads * queries * tokens


def pattern_bytes(shape: Shape, tokens: int, itemsize: int = 2) -> int:
    """What `output_attentions=True` returns: all patterns of all layers."""
    return shape.all_heads * tokens**2 * itemsize


def streaming_flops(shape: Shape, tokens: int, sink: int = SINK, recent: int = RECENT) -> int:
    """Attention of all heads to sink and window, in blocks of queries, as it is computed."""
    block = min(tokens, max(recent, LEAST_BLOCK))
    padded = -(-tokens // block) * block
    return 4 * shape.all_heads * shape.d_head * padded * (sink + recent - 1 + block)


def gates_flops(
    shape: Shape, tokens: int, sink: int = SINK, recent: int = RECENT, *, causal: bool = True
) -> int:
    """One step of training gates with the teacher's full attention.

    Teacher, student, and the student once more for its gradients: three passes, the first with full
    attention, the others with streaming attention; the second student leaves out the last product
    of a block, which nothing needs. The way back to the gates multiplies with every weight but the
    first layer's queries, keys and values, and takes five products of streaming attention in all
    other layers, where there were two on the way out.
    """
    passes = 6 * tokens * shape.blocks + attention_flops(shape, tokens, causal=causal)
    again = 2 * tokens * shape.layers * shape.d_model * shape.d_mlp
    first = 2 * tokens * (shape.attention - shape.heads * shape.d_head * shape.d_model)
    streams = streaming_flops(shape, tokens, sink, recent)
    back = 2 * tokens * shape.blocks - first + 5 * streams * (shape.layers - 1) // shape.layers // 2
    return passes - again + 2 * streams + back


def gates_memory(shape: Shape, tokens: int, itemsize: int = 2) -> int:
    """A hidden state and the teacher's attention output a layer."""
    wide = shape.d_model + shape.heads * shape.d_head
    return shape.layers * tokens * wide * itemsize
