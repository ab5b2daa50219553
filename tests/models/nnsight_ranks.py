"""One of two processes that share a model, started by test_nnsight_ranks.

RANK=0 WORLD_SIZE=2 ... python nnsight_ranks.py FOLDER OUT
"""

import os
import sys

import torch
import torch.distributed as dist
from mnemoscope.interventions.patched_passes import effects_by_passes
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HeadId, NeuronId, Site, TokenSpan, knock_out, uniform
from mnemoscope.models.edits import resample, scale, zero
from mnemoscope.models.errors import UnsupportedModelError
from mnemoscope.models.nnsight_model import tensor_parallel

torch.set_num_threads(1)
folder, out = sys.argv[1:3]
dist.init_process_group("gloo")
model = tensor_parallel(folder, 2, dtype=torch.float64)
rows = torch.arange(3, 21).view(2, 9).tolist()
batch = model.batch([rows[0], rows[1][:6]])
sites = (Site.Z, Site.NEURON, Site.GATE_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_POST)
seen = model.capture(batch, sites)
kept = {f"{site}.{layer}": value for (site, layer), value in seen.values.items()}
kept["logits"] = seen.logits
values = torch.ones(2, 1, model.anatomy.d_v, dtype=torch.float64)
edits = [
    zero([HeadId(0, 1), HeadId(1, 3)]),  # a head of each process
    scale([NeuronId(1, 3), NeuronId(0, 40)], -3.0, "end", "prefill"),
    resample([HeadId(2, 2)], values),
]
with model.intervene(edits) as installed:
    kept["edited"] = model.logits(batch)
kept["fired"] = torch.tensor([one.fired for one in installed])
kept["generated"] = torch.tensor(model.generate(model.batch([rows[0]]), 4))
kept["shard"] = torch.tensor(model.structure.model.layers[0].mlp.down_proj.weight.to_local().shape)
kept["rows"] = model.rows(batch)
hidden = [knock_out([HeadId(0, 0), HeadId(1, 3)], [TokenSpan(1, 3)]), uniform([HeadId(2, 2)])]
with model.intervene(hidden):
    kept["hidden"] = model.logits(batch)
corrupted = model.batch([rows[1], rows[0][:7]])
asked = torch.tensor([[5, 9], [4, 30]])
for name, frozen in (("direct", True), ("total_end", False)):
    kept[name] = effects_by_passes(model, batch, corrupted, asked, frozen=frozen).change
try:
    build_chain(model)
except UnsupportedModelError as error:
    kept["refused"] = torch.tensor(list(str(error).encode()))
torch.save(kept, f"{out}.{os.environ['RANK']}")
dist.barrier()
dist.destroy_process_group()
