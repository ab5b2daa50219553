"""Hand-set Llamas whose hidden units are known: the oracles of everything that ranks or cuts units.

A Llama of two layers over the words of `unit_world.py`. Its residual stream holds these subspaces
in a random basis, one code (a unit vector) an item, all codes orthogonal but those of plain words:

    constant      the same large value everywhere, so that RMSNorm is close to the identity
    subject       token code of each subject              embedding
    telling       token code of each relation word        embedding
    plain         token codes of all other words          embedding
    said, stop    the token is an answer; is a full stop   embedding
    topic         which subject the text is about         mover of subjects         L0.H0
    asked         which relation it asks about            mover of relation words   L0.H1
    relation      what the carriers make of `asked`       carriers                  L0 units
    answer        evidence for each answer                fact units                L1 units
    scratch       what nobody reads                       detectors, noise

- A *detector* fires where its relation's telling words stand, in every wording, and nowhere else:
  average precision 1. It writes scratch: nothing depends on it.
- A *carrier* fires from the telling word on and writes its `relation` code, without which no
  answer of this relation comes. It fires at subjects too, differently strongly at each, where it
  does no harm: so its pooled activation tells its relation less well than the detector's.
- A *fact unit* is `gate(topic = s) * up(relation = r)`, so its output follows the carrier
  linearly. Strengths are 1.15 and 0.85 times `_ANSWER_LOGIT`, and where a subject has the one in
  its relation, it has the other in the sibling relation. A carrier that is set to its usual value
  while the sibling is asked takes over half of the answers; at twice that value, all of them.

The rest is noise: units that hear subjects loudly and other words faintly, as likely for one
relation as for the next, write scratch, and move an answer by a small part of a logit; heads that
move even less. A text should name one subject and one relation: of several the heads make a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..data.facts.items import Relation
from ..models.anatomy import Anatomy, part, resolve_anatomy
from ..models.types import NeuronId, Site
from .unit_world import (
    END_OF_TEXT,
    FALLBACK,
    PAD,
    RELATION_WORDS,
    unit_relations,
    unit_tokenizer,
    unit_words,
)

_D_MODEL, _D_MLP, _N_LAYERS, _N_HEADS, _D_HEAD = 384, 256, 2, 4, 96
_N_POSITIONS = 256
_CONSTANT_LENGTH = 30.0
_TYPICAL_LENGTH = (_CONSTANT_LENGTH**2 + 4.0) ** 0.5  # the constant and about four codes
_PLAIN = 48  # dimensions that all plain words share
_SHARPNESS = 12.0  # attention score of a matching token; the others score 0
_LOGITS_PER_CODE = 50.0  # answers are written short, so noise moves logits too
_ANSWER_LOGIT, _FALLBACK_LOGIT, _STOP_LOGIT = 10.0, 3.0, 100.0
_GAIN, _FACT_GAIN = 4.0, 40.0


@dataclass(frozen=True, eq=False)
class PlantedUnits:
    """A plain Hugging Face module in eval mode, its tokenizer, and the truth about its units.

    `detectors` and `carriers` go by relation name, `fact_units` by (relation name, subject); all
    three are empty in a null model. `siblings` names the relation over the same subjects.
    """

    module: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    relations: tuple[Relation, ...]
    detectors: Mapping[str, NeuronId]
    carriers: Mapping[str, NeuronId]
    fact_units: Mapping[tuple[str, str], NeuronId]
    siblings: Mapping[str, str]


def planted_units_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> PlantedUnits:
    """A model that answers six relations through one carrier unit each (module docstring).

    `seed` draws the basis, the noise and the places of the planted units. Every answer is right in
    float32 and float64; half precision, too coarse beside the large constant, loses some.
    """
    return _build(seed, dtype, planted=True)


def null_units_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> PlantedUnits:
    """The same embeddings and words with noise heads and noise units only: nothing is known."""
    return _build(seed, dtype, planted=False)


@torch.no_grad()
def plant_unit(
    module: Any,
    anatomy: Anatomy,
    layer: int,
    index: int,
    read: Float[Tensor, " d_model"],
    write: Float[Tensor, " d_model"],
    gain: float,
    *,
    up: Float[Tensor, " d_model"] | None = None,
) -> NeuronId:
    """Overwrite one hidden unit of a gated MLP in place and return its name.

    With x the MLP's input (after its norm), the unit becomes `act(gain <x, read>) <x, up>` and
    writes `write` times that. `up` is `read` where none is given, so that the unit grows with the
    match and is near 0 without it, whatever else the stream holds. Raises `UnitOutOfRangeError`
    for a unit that is not there and `UnsupportedSiteError` for an MLP without a gate.
    """
    anatomy.check_neuron(NeuronId(layer, index, Site.GATE_PRE))
    spec, unit = anatomy.spec, NeuronId(layer, index)
    block = part(module, spec.blocks)[layer]
    gate, up_proj = part(block, str(spec.gate)), part(block, str(spec.up))
    down = part(block, str(spec.down))
    shift = anatomy.n_units(Site.UP) if gate is up_proj else 0  # fused: the gate's half first
    gate.weight[index] = (gain * read).to(gate.weight)
    up_proj.weight[shift + index] = (read if up is None else up).to(up_proj.weight)
    down.weight[:, index] = write.to(down.weight)
    for projection, row in ((gate, index), (up_proj, shift + index)):
        if projection.bias is not None:
            projection.bias[row] = 0
    return unit


@dataclass(frozen=True, eq=False)
class _World:
    """Relations, words, the rows of the random basis by subspace, and the random numbers."""

    relations: tuple[Relation, ...]
    words: tuple[str, ...]
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    codes: Mapping[str, Float[Tensor, "item d_model"]]
    random: torch.Generator

    @property
    def constant(self) -> Float[Tensor, " d_model"]:
        """Reads 1 at every token."""
        return self.codes["constant"][0] / _CONSTANT_LENGTH

    def row(self, relation: Relation) -> int:
        """The relation's place in `asked` and `relation`."""
        return self.relations.index(relation)

    def draw(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)


def _build(seed: int, dtype: torch.dtype, *, planted: bool) -> PlantedUnits:
    world = _world(seed)
    module = _bare_module(world)
    detectors: dict[str, NeuronId] = {}
    carriers: dict[str, NeuronId] = {}
    fact_units: dict[tuple[str, str], NeuronId] = {}
    if planted:
        _plant_movers(module, world)
        early, late = (_places(world) for _ in range(_N_LAYERS))
        for relation in world.relations:
            detectors[relation.name] = _plant_detector(module, world, relation, early.pop())
            carriers[relation.name] = _plant_carrier(module, world, relation, early.pop())
            fact_units |= _plant_facts(module, world, relation, late)
    pairs = zip(world.relations[::2], world.relations[1::2], strict=True)
    siblings = {x.name: y.name for a, b in pairs for x, y in ((a, b), (b, a))}
    return PlantedUnits(
        module=module.to(dtype),
        tokenizer=unit_tokenizer(world.words),
        relations=world.relations,
        detectors=MappingProxyType(detectors),
        carriers=MappingProxyType(carriers),
        fact_units=MappingProxyType(fact_units),
        siblings=MappingProxyType(siblings),
    )


def _world(seed: int) -> _World:
    relations = unit_relations()
    facts = [fact for relation in relations for fact in relation.facts]
    subjects = tuple(dict.fromkeys(fact.subject for fact in facts))
    objects = tuple(dict.fromkeys(fact.object for fact in facts))
    random = torch.Generator().manual_seed(seed)
    telling = sum(map(len, RELATION_WORDS.values()))
    sizes = {"constant": 1, "subject": len(subjects), "telling": telling, "plain": _PLAIN}
    sizes |= {"said": 1, "stop": 1, "topic": len(subjects), "asked": len(relations)}
    sizes |= {"relation": len(relations), "answer": len(objects)}
    sizes["scratch"] = _D_MODEL - sum(sizes.values())
    square = torch.randn(_D_MODEL, _D_MODEL, generator=random, dtype=torch.float64)
    rows = torch.linalg.qr(square).Q.split(list(sizes.values()))
    codes = dict(zip(sizes, rows, strict=True))
    return _World(relations, unit_words(relations), subjects, objects, codes, random)


@torch.no_grad()
def _bare_module(world: _World) -> LlamaForCausalLM:
    """The embeddings, and noise for everything else. The global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        module = LlamaForCausalLM(_config(world.words)).double().eval()
    module.model.embed_tokens.weight.copy_(_embedding(world))
    module.lm_head.weight.copy_(_unembedding(world))
    for name, weight in module.named_parameters():
        if "norm" in name:
            weight.fill_(_TYPICAL_LENGTH / _D_MODEL**0.5)
    for block in module.model.layers:
        attn, mlp = block.self_attn, block.mlp
        for projection in (attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj):
            projection.weight.copy_(_noise_reads(world, projection.out_features))
        attn.o_proj.weight.copy_(_noise_writes(world, attn.o_proj.in_features, loud=0.0).T)
        mlp.down_proj.weight.copy_(_noise_writes(world, _D_MLP, loud=0.3).T)
    return module


def _config(words: tuple[str, ...]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=_D_MODEL,
        intermediate_size=_D_MLP,
        num_hidden_layers=_N_LAYERS,
        num_attention_heads=_N_HEADS,
        num_key_value_heads=_N_HEADS,
        head_dim=_D_HEAD,
        max_position_embeddings=_N_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.index(END_OF_TEXT),
        pad_token_id=words.index(PAD),
    )


def _embedding(world: _World) -> Float[Tensor, "word d_model"]:
    plain = torch.nn.functional.normalize(world.draw(len(world.words), _PLAIN), dim=1)
    rows = plain @ world.codes["plain"]
    rows[_ids(world, (*world.objects, FALLBACK))] += world.codes["said"]
    rows[_ids(world, (".",))] += world.codes["stop"]
    rows[_ids(world, world.subjects)] = world.codes["subject"]
    telling = [word for words in RELATION_WORDS.values() for word in words]
    rows[_ids(world, telling)] = world.codes["telling"]
    return rows + _CONSTANT_LENGTH * world.codes["constant"]


def _unembedding(world: _World) -> Float[Tensor, "word d_model"]:
    """Answers read their code; after an answer comes a full stop, after that the end."""
    rows = torch.zeros(len(world.words), _D_MODEL, dtype=torch.float64)
    rows[_ids(world, world.objects)] = _LOGITS_PER_CODE * world.codes["answer"]
    rows[world.words.index(FALLBACK)] = _FALLBACK_LOGIT * world.constant
    rows[world.words.index(".")] = _STOP_LOGIT * world.codes["said"][0]
    rows[world.words.index(END_OF_TEXT)] = _STOP_LOGIT * world.codes["stop"][0]
    return rows


def _ids(world: _World, words: tuple[str, ...] | list[str]) -> list[int]:
    place = {word: i for i, word in enumerate(world.words)}
    return [place[word] for word in words]


def _noise_reads(world: _World, n: int) -> Float[Tensor, "n d_model"]:
    """Rows that hear subjects (tokens and topic) loudly, the rest faintly, the constant not."""
    loud = torch.cat([world.codes["subject"], world.codes["topic"]])
    names = ("telling", "plain", "said", "stop", "asked", "relation", "answer", "scratch")
    faint = torch.cat([world.codes[name] for name in names])
    return world.draw(n, len(loud)) @ loud + 0.2 * world.draw(n, len(faint)) @ faint


def _noise_writes(world: _World, n: int, loud: float) -> Float[Tensor, "n d_model"]:
    """Rows of about length `loud` in scratch and 0.002 in `answer`."""
    scratch, answer = world.codes["scratch"], world.codes["answer"]
    loudly = world.draw(n, len(scratch)) @ scratch * (loud / len(scratch) ** 0.5)
    return loudly + world.draw(n, len(answer)) @ answer * (0.002 / len(answer) ** 0.5)


def _places(world: _World) -> list[int]:
    return torch.randperm(_D_MLP, generator=world.random).tolist()


def _plant_movers(module: LlamaForCausalLM, world: _World) -> None:
    """L0.H0: `topic(s)` to all that follows subject s; L0.H1: `asked(r)` likewise."""
    codes, n = world.codes, len(world.relations)
    _plant_mover(module, world, 0, codes["subject"], codes["topic"])
    asked = codes["asked"].repeat_interleave(len(codes["telling"]) // n, dim=0)
    _plant_mover(module, world, 1, codes["telling"], asked)


@torch.no_grad()
def _plant_mover(
    module: LlamaForCausalLM,
    world: _World,
    head: int,
    seen: Float[Tensor, "item d_model"],
    moved: Float[Tensor, "item d_model"],
) -> None:
    """A head of layer 0 that looks for any of the `seen` codes and writes its `moved` code."""
    attn = module.model.layers[0].self_attn
    rows = slice(head * _D_HEAD, (head + 1) * _D_HEAD)
    still = head * _D_HEAD + _D_HEAD // 2 - 1  # rotary turns this coordinate least of all
    for projection in (attn.q_proj, attn.k_proj, attn.v_proj):
        projection.weight[rows] = 0
    attn.o_proj.weight[:, rows] = 0
    attn.q_proj.weight[still] = _SHARPNESS * _D_HEAD**0.5 * world.constant
    attn.k_proj.weight[still] = seen.sum(0)
    attn.v_proj.weight[rows][: len(seen)] = seen
    attn.o_proj.weight[:, rows][:, : len(seen)] = moved.T


def _on() -> float:
    """Activation of a detector or carrier at one full match."""
    return float(torch.nn.functional.silu(torch.tensor(_GAIN)))


def _plant_detector(
    module: LlamaForCausalLM, world: _World, relation: Relation, index: int
) -> NeuronId:
    telling = [word for words in RELATION_WORDS.values() for word in words]
    own = [telling.index(word) for word in RELATION_WORDS[relation.name]]
    read = world.codes["telling"][own].sum(0)
    write = world.codes["scratch"][world.row(relation)] / _on()
    return plant_unit(module, resolve_anatomy(module), 0, index, read, write, _GAIN)


def _plant_carrier(
    module: LlamaForCausalLM, world: _World, relation: Relation, index: int
) -> NeuronId:
    row = world.row(relation)
    loudness = 2.5 * torch.rand(len(world.subjects), generator=world.random, dtype=torch.float64)
    read = world.codes["asked"][row] + loudness @ world.codes["subject"]
    write = world.codes["relation"][row] / _on()
    return plant_unit(module, resolve_anatomy(module), 0, index, read, write, _GAIN)


def _plant_facts(
    module: LlamaForCausalLM, world: _World, relation: Relation, places: list[int]
) -> dict[tuple[str, str], NeuronId]:
    """One unit of layer 1 a fact. What its `up` hears of subjects as tokens keeps its pooled
    activation from telling the relation; nothing is read off there."""
    row, anatomy, units = world.row(relation), resolve_anatomy(module), {}
    for i, fact in enumerate(relation.facts):
        strength = _ANSWER_LOGIT * (1.15 if (i + row) % 2 else 0.85)
        topic = world.codes["topic"][world.subjects.index(fact.subject)]
        answer = world.codes["answer"][world.objects.index(fact.object)]
        units[relation.name, fact.subject] = plant_unit(
            module,
            anatomy,
            1,
            places.pop(),
            read=topic - 0.5 * world.constant,
            write=answer * strength / (_LOGITS_PER_CODE * _FACT_GAIN / 2),
            gain=_FACT_GAIN,
            up=world.codes["relation"][row]
            + 6 * world.draw(len(world.subjects)) @ world.codes["subject"],
        )
    return units
