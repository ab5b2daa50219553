# %% [markdown]
# # 4. Retrieval heads
#
# **Claim** (Wu et al. 2024, *Retrieval Head Mechanistically Explains Long-Context Factuality*):
# a few attention heads copy from a long context what is asked for. They are *sparse*, *stable*
# (the same heads whatever the needle, the length or the haystack) and *causal*: without them the
# answer is lost, without random heads it is not. Later work finds such heads in other ways (QRHead,
# CoRe, LOCOS, induction, streaming gates) and under the same name.
#
# **Expected direction**: few heads reach a copy score of 0.1, and a few of them carry most of it;
# rankings of other needles, lengths and halves agree; ablating a method's first heads costs the
# right answer more than random heads of the same layers and norms, at about the same perplexity;
# heads that *locate* the needle from the question come first, and without them the heads that
# *emit* the answer no longer attend to it.
#
# **What would refute it**: scores spread over many heads; rankings of other needles that agree no
# better than unrelated ones; losses inside the range of the random heads, or with a loss of plain
# text as large; emit heads that find the needle as well behind a question whose locate heads could
# not see it. Methods of one name that share no heads would refute the name.
#
# Heads are found on some needles and judged on others. Copying scores are of the model's own
# answers; whatever compares conditions is teacher-forced, since it is defined for failures too.

# %%
import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import plotly.graph_objects as go
import polars
import torch
from IPython.display import display
from mnemoscope.cli.retrieval_comparing import figures_of
from mnemoscope.cli.retrieval_gates import GateConfig, samples_of
from mnemoscope.data.facts.haystacks import piece_encoder
from mnemoscope.data.neutral import neutral_passages
from mnemoscope.interventions.head_means import head_write_norms, mean_head_outputs
from mnemoscope.models import load_model
from mnemoscope.models.tokens import encode
from mnemoscope.models.types import HeadId
from mnemoscope.probes.answer_curves import Ablation, answer_curves, area_beyond_random, curve_table
from mnemoscope.probes.elicitation import silent
from mnemoscope.probes.method_comparison import (
    compare_methods,
    gate_agreement,
    on_query_heads,
    ranking_of,
)
from mnemoscope.probes.retrieval_designs import design_for
from mnemoscope.probes.retrieval_heads import score_trials
from mnemoscope.probes.retrieval_measures import measure_all, summarise_all
from mnemoscope.probes.retrieval_readings import heard
from mnemoscope.probes.retrieval_statistics import does, needle_means
from mnemoscope.probes.retrieval_tables import table
from mnemoscope.probes.retrieval_trials import measure_trials
from mnemoscope.probes.serial_retrieval import measure_serial
from mnemoscope.probes.streaming_costs import single_head_costs
from mnemoscope.probes.streaming_gates import GateSettings, train_gates
from mnemoscope.results.controls import matched_random_heads
from mnemoscope.results.figures import finished, head_grid_figure
from mnemoscope.results.provenance import collect_provenance
from mnemoscope.results.report import figure_html, render_report
from mnemoscope.results.retrieval_head_files import RETRIEVAL_THRESHOLD
from mnemoscope.results.run_folder import open_run
from mnemoscope.results.run_part import RunPart
from mnemoscope.results.stability import rank_stability, top_k_jaccard
from mnemoscope.results.statistics import bootstrap_mean, wilson
from mnemoscope.results.study import preset_name, run_key, runs_folder, show


@dataclass(frozen=True)
class Params:
    """What decides the numbers.

    `needles` find heads in `rounds` at all `lengths`, `judges` others judge them at those of
    `judge_lengths`. `trials` are ablated at most, `k` heads make a top, `samples` of passkeys tell
    the cost of streaming, `steps` train gates (0: none). `variants` ask in another way.
    """

    model: str
    lengths: tuple[int, ...]
    needles: int
    rounds: int
    judge_lengths: tuple[int, ...]
    judges: int
    variants: tuple[str, ...]
    curves: tuple[str, ...]
    k: int
    sizes: tuple[int, ...]
    trials: int
    draws: int
    hidden: int
    samples: int
    passkey_lengths: tuple[int, ...]
    steps: int
    sink: int = 16
    recent: int = 64
    seed: int = 0


METHODS = ("copy", "first", "continuation", "emit", "locate", "r2", "qr", "core", "locos")
OTHERS = ("induction", "echo", "suppression", "basin_question")
CURVES = (*METHODS, "induction", "streaming cost")
PRESETS = {
    "smoke": Params(
        *("engram", (192, 448), 12, 1, (320,), 6, ("non-literal",), ("copy", "induction")),
        *(4, (1, 4), 4, 3, 3, 1, (480,), 0),
    ),
    "engram": Params(
        *("engram", (256, 512, 896), 45, 2, (256, 768), 30),
        *(("non-literal", "paraphrased"), CURVES),
        *(5, (1, 2, 4, 8), 24, 20, 4, 8, (512, 768), 200),
    ),
    "small": Params(
        *("smollm2", (512, 1024, 2048), 30, 1, (512,), 25, ("no template", "non-literal")),
        ("copy", "emit", "locate", "core", "locos", "induction", "streaming cost"),
        *(10, (2, 8), 8, 5, 8, 2, (768,), 0),
    ),
    "paper": Params(
        *("smollm2", (512, 1024, 2048, 4096), 40, 4, (1024, 4096), 40),
        *(("no template", "non-literal", "paraphrased"), CURVES),
        *(10, (1, 2, 4, 8, 16, 32), 40, 20, 10, 16, (1024, 2048, 4096), 400),
    ),
}
params = PRESETS[preset_name()]
polars.Config(tbl_rows=200, tbl_cols=30, tbl_width_chars=240, fmt_str_lengths=80, float_precision=3)
display(params)

# %% [markdown]
# ## Trials
# Every needle is asked for in a haystack with others of its kind. A trial is *answered* when the
# right one is named in the model's first sixteen words, *known* when it is without the haystack.
# `answer first`: the answer opens the reply. A model that repeats the statement first can copy the
# answer's first token by induction too, so that `first` and `copy` then speak less of the question.

# %%
model = load_model(params.model)
anatomy = model.anatomy
options = {"lengths": params.lengths, "needles": params.needles, "rounds": params.rounds}
found_on = design_for(model, seed=params.seed, **options)
options = {"lengths": params.judge_lengths, "needles": params.judges, "seed": params.seed + 1}
HOW = {
    "no template": {"chat": False},
    "non-literal": {"kind": "non-literal"},
    "paraphrased": {"paraphrased": True},
}
judged_on = {
    "as found": design_for(model, **options),
    **{name: design_for(model, **options, **HOW[name]) for name in params.variants},
}
plain = json.loads(json.dumps(asdict(params)))
config = run_key(plain, weights=model.weights_sha256, data=found_on.sha256)
run = open_run(runs_folder(), "study-04", config)


def phase(name):
    """Progress of a part, for `runs ls`."""
    return silent if run.finished else lambda done, total: run.progress(done, total, name)


measured = measure_all(model, found_on, seed=params.seed, run=RunPart(run, "found"), phase=phase)
judged = {
    name: measure_trials(model, design, run=RunPart(run, name), progress=phase(name))
    for name, design in judged_on.items()
}


def counted(name, trials):
    """Which trials a row is about: of paraphrased ones those that do not ask the plain question."""
    return np.array([name != "paraphrased" or one.question > 0 for one in trials.design.trials])


rows = []
for name, trials in {"to find heads": measured.trials, **judged}.items():
    begins = [
        said.strip().casefold().startswith(trials.design.needle(trial.needle_id).answer.casefold())
        for said, trial in zip(trials.continuations, trials.design.trials, strict=True)
    ]
    for length in trials.design.lengths:
        here = np.array([trial.length == length for trial in trials.design.trials])
        here &= counted(name, trials)
        right = int(trials.accepted[here].sum())
        interval = wilson(right, int(here.sum()))
        row = {"trials": name, "length": length, "asked": int(here.sum()), "answered": right}
        row |= {"rate": interval.rate, "low": interval.low, "high": interval.high}
        row |= {"answer first": int((np.array(begins) & trials.accepted)[here].sum())}
        row |= {"known": int(trials.known[here].sum())}
        row |= {"log p of the answer": float(trials.forced_logprob[here].mean())}
        row |= {"without haystack": float(trials.control_logprob[here].mean())}
        rows.append(row)
asked = polars.DataFrame(rows)
display(asked)
for note in measured.trials.notes:
    print(note)

# %% [markdown]
# ## Claim 1: sparse
# `heads >= 0.1` only means something for scores from 0 to 1. `half` is the number of heads that
# hold half of all positive score, `effective` the participation ratio (as many equal heads would be
# as spread). `real`: heads with q at most 0.05 against the score's own null.

# %%
found = summarise_all(measured, found_on, seed=params.seed)
heads = anatomy.n_layers * anatomy.n_heads


SHARES = ("copy", "first", "continuation", "emit", "induction", "echo")


def spread(name):
    """How few heads hold a score."""
    one = found.scores[name]
    positive = np.sort(np.nan_to_num(one.mean).clip(min=0).ravel())[::-1]
    held = positive.cumsum() / max(positive.sum(), 1e-12)
    at_least = int((one.mean >= RETRIEVAL_THRESHOLD).sum())
    row = {"score": name, "heads >= 0.1": at_least if name in SHARES else None}
    row |= {"highest": float(positive[0]), "half": int(np.searchsorted(held, 0.5)) + 1}
    row |= {"effective": float(positive.sum() ** 2 / max((positive**2).sum(), 1e-12))}
    row |= {"never": int((np.nan_to_num(one.mean) <= 0).sum())}
    row |= {"real": int((one.q <= 1 / 20).sum()), "null": one.null_name}
    return row | {"best": " ".join(map(str, ranking_of(one.mean, 4)))}


sparse = polars.DataFrame([spread(name) for name in (*METHODS, *OTHERS) if name in found.scores])
print(f"{heads} heads, {len(set(found.free.needles))} needles answered")
display(sparse)

# %%
copying = found.scores["copy"]
figures = {
    name: head_grid_figure(
        found.scores[name].mean,
        title=title,
        axis_label=label,
        significant=np.nan_to_num(found.scores[name].q, nan=1.0) <= 1 / 20,
    )
    for name, title, label in (
        ("copy", "Literal copying", "share of the answer copied"),
        ("locate_mass", "Locate: from the question", "attention mass on the needle"),
        ("emit", "Emit: from the answer", "attention mass on the needle"),
        ("locos", "Written onto the answer from the needle", "logits beyond elsewhere"),
    )
    if name in found.scores
}
for figure in figures.values():
    show(figure)

# %% [markdown]
# ## Claim 2: stable
# Spearman over heads, overlap of the first k (Jaccard, with its exact chance), and split-half
# reliability over needles. All teacher-forced on all trials that are not known, answered or not.
# `cluster / naive` is how much larger the honest error of a copying head's score is than the one
# that treats trials as independent.

# %%
SCORES = ("copy", "first", "continuation", "emit", "locate_mass")
forced = score_trials(measured.trials, mode="forced", among="all")


def elsewhere(score):
    """The same score of every head on the needles that judge, by the way of asking."""
    for name, trials in judged.items():
        other = score_trials(trials, mode="forced", among="all")
        yield name, np.nanmean(other.values[score][counted(name, trials)[other.trials]], axis=0)


def half_means(score):
    """Means of the two halves of the needles."""
    per_needle = needle_means(forced.values[score], forced.needles)
    return np.nanmean(per_needle[::2], axis=0), np.nanmean(per_needle[1::2], axis=0)


def pairs(score):
    """What is compared: name, one grid, another."""
    first, last = min(params.lengths), max(params.lengths)
    at = {
        length: np.nanmean(forced.values[score][forced.lengths == length], axis=0)
        for length in (first, last)
    }
    yield "halves of the needles", *half_means(score)
    yield f"{first} and {last} tokens", at[first], at[last]
    for name, other in elsewhere(score):
        same = "other needles" if name == "as found" else f"other needles, {name}"
        yield same, forced.mean(score), other


rows = []
for score in SCORES:
    for what, one, other in pairs(score):
        both = np.isfinite(one) & np.isfinite(other)
        if not both.any() or not one[both].any() or not other[both].any():
            continue
        overlap = top_k_jaccard(one[both], other[both], params.k, seed=params.seed)
        rows.append(
            {"score": score, "compared": what, "heads": int(both.sum())}
            | {"spearman": rank_stability([one[both], other[both]]).mean}
            | {"overlap": overlap.value, "chance": overlap.null_mean, "p": overlap.p}
            | {"highest": float(one[both].max()), "highest there": float(other[both].max())}
        )
stable = polars.DataFrame(rows).fill_nan(None)
reliable = polars.DataFrame(
    [
        {"score": name, "split-half reliability": one.reliability}
        for name, one in found.scores.items()
    ]
).fill_nan(None)
display(stable, reliable)
values = found.free.values["copy"]
retrieving = np.nan_to_num(copying.mean) >= RETRIEVAL_THRESHOLD
naive = np.nanstd(values, axis=0, ddof=1) / np.sqrt(len(values))
ratio = copying.se[retrieving & (naive > 0)] / naive[retrieving & (naive > 0)]
needle_share = found.mixed.needle_share[retrieving] if found.mixed else np.full(1, np.nan)
errors = {
    "copying heads": int(retrieving.sum()),
    "cluster / naive error, median": float(np.median(ratio)) if ratio.size else None,
    "between-needle share of variance, median": float(np.nanmedian(needle_share))
    if needle_share.size and np.isfinite(needle_share).any()
    else None,
}
print(errors)

# %% [markdown]
# ## Which methods agree?
# Streaming costs (and gates, where trained) belong to key/value heads; each query head gets its
# group's. They are about retrieval only in a model that recalls the passkeys they are measured on.
# Overlap of the first k heads; a star: more than chance, p at most 0.05.

# %%
gating = GateConfig(
    model=params.model,
    sink=params.sink,
    recent=params.recent,
    lengths=params.passkey_lengths,
    seed=params.seed,
)
passkeys = samples_of(gating, model)
samples = [passkeys.sample(i) for i in range(params.samples)]


def recall(sample):
    """Whether each token of the passkeys is the model's first choice, and whether it opens one."""
    at = torch.tensor(sample.answer_positions)[None]
    best = model.logits(model.batch([sample.ids]), at=at - 1)[0].argmax(-1).tolist()
    opens = {span.start for span in sample.answers}
    rows = zip(sample.answer_positions, best, strict=True)
    return [(place in opens, sample.ids[place] == said) for place, said in rows]


said = np.array([row for sample in samples for row in recall(sample)])
passkey_recall = {
    "passkey tokens": len(said),
    "first ones right": float(said[said[:, 0], 1].mean()),
    "later ones right": float(said[~said[:, 0], 1].mean()),
}
print(passkey_recall)
costs = single_head_costs(
    model,
    samples,
    sink=params.sink,
    recent=params.recent,
    run=RunPart(run, "streaming costs"),
    progress=phase("streaming costs"),
)
cost = costs.by_head("kl", anatomy.n_layers).mean(axis=0)
grids = {name: found.scores[name].mean for name in (*METHODS, *OTHERS) if name in found.scores} | {
    "streaming cost": on_query_heads(cost, anatomy.n_heads)
}
gates = {"streaming cost": cost}
if params.steps:
    settings = GateSettings(sink=params.sink, recent=params.recent, steps=params.steps)
    trained = train_gates(
        model,
        [passkeys.with_seed(params.seed + i) for i in range(2)],
        settings,
        run=RunPart(run, "gates"),
        progress=phase("gates"),
    )
    gates["gate"] = trained.alpha
    grids["gate"] = on_query_heads(trained.alpha, anatomy.n_heads)
    print(f"gates of two seeds rank heads alike by {trained.stability.mean:.2f}")
compared = compare_methods(grids, params.k, seed=params.seed)
agreement = compared.table()
display(agreement.head(12), agreement.filter(polars.col("method") == "copy"))
agreeing = polars.DataFrame(
    [{"gates": name, **asdict(gate_agreement(one, copying.mean))} for name, one in gates.items()]
).fill_nan(None)
display(agreeing)
print("first answer token and later ones, induction held fixed:", found.partial)

# %% [markdown]
# ## Claim 3: causal
# Log-probability of the right answer that is lost when a method's first heads are set to their mean
# output over neutral text, in the rows of question and answer; beside random heads of the same
# layers and norms. Needles, and haystacks, are others than those that the heads were found on.
# `beyond` is the loss minus that of the random heads, `area` its mean over the log of the size. The
# copy ranking is ablated in two other ways too: as Wu's released code does it, and by hiding the
# needle alone.
# Where the model says other words before the answer, these stand behind the question, so that the
# answer is forced where the model gave it; their rows count as the question's.

# %%
judge = judged["as found"]
piece = piece_encoder(lambda text: encode(model.text_tokenizer, text))


def in_its_words(number):
    """A trial with the model's own words before the answer; None where its tokens never came."""
    trial = judge.design.trials[number]
    said = piece(judge.continuations[number])
    first, stop = heard(said, trial.answer_ids) or (0, 0)
    if stop - first < len(trial.answer_ids):
        return None
    return replace(trial, question_ids=(*trial.question_ids, *said[:first]))


own = {
    number: trial
    for number in np.flatnonzero(judge.accepted & ~judge.known).tolist()
    if (trial := in_its_words(number)) is not None
}
places = np.linspace(0, len(own) - 1, min(params.trials, len(own))).round().astype(int)
chosen = [list(own)[place] for place in places]
ablated_in = replace(
    judge.design,
    trials=tuple(own.get(i, trial) for i, trial in enumerate(judge.design.trials)),
)
before = [len(own[i].question_ids) - len(judge.design.trials[i].question_ids) for i in chosen]
print(f"{len(chosen)} of {len(own)} answered trials; tokens before the answer: {before}")
texts = neutral_passages()
norms = head_write_norms(model, texts)
means = mean_head_outputs(model, texts, anatomy.all_heads())
rankings = {
    name: ranking_of(grids[name], params.sizes[-1]) for name in params.curves if name in grids
}
ABLATIONS = {
    "mean, question and answer": Ablation("mean", "question+decode", means),
    "uniform attention, answer only (Wu)": Ablation("uniform", "decode"),
    "needle hidden, answer only": Ablation("knock_out", "decode"),
}
curves = {
    how: answer_curves(
        model,
        ablated_in,
        rankings if how.startswith("mean") else {"copy": rankings["copy"]},
        params.sizes,
        ablation,
        draws=params.draws,
        norms=norms,
        trials=chosen,
        texts=texts,
        seed=params.seed,
        run=RunPart(run, how),
        progress=phase(how),
    )
    for how, ablation in ABLATIONS.items()
}
losses = polars.concat(
    [
        curve_table(curve, seed=params.seed).select(
            polars.lit(how).alias("ablation"), polars.lit(name).alias("method"), polars.all()
        )
        for how, some in curves.items()
        for name, curve in some.items()
    ]
)
areas = []
for how, some in curves.items():
    for name, curve in some.items():
        area = area_beyond_random(curve, seed=params.seed)
        row = {"ablation": how, "method": name, "heads": " ".join(map(str, curve.ranking[:4]))}
        row |= {"area": area.value, "low": area.low, "high": area.high, "p": area.against.p_loss}
        areas.append(row | {"z": area.against.z, "note": curve.note})
areas = polars.DataFrame(areas).fill_nan(None).sort("ablation", "area", descending=[False, True])
clean = next(iter(curves.values()))["copy"].clean
print(f"log p of the answer before: {clean.mean():.2f} nats")
display(areas, losses)
mean_rows = losses.filter(polars.col("ablation").str.starts_with("mean"))
harm = polars.col("perplexity") > 1.1 * polars.col("perplexity_before")
harmful = mean_rows.filter(harm)["method"].unique().to_list()  # these break the model
forest = go.Figure()
for name, symbol, kept in (
    ("perplexity within 10 %", "circle", ~polars.col("method").is_in(harmful)),
    ("breaks the model", "x", polars.col("method").is_in(harmful)),
):
    some = areas.filter(polars.col("ablation").str.starts_with("mean") & kept).to_dicts()
    ends = {"array": [one["high"] - one["area"] for one in some], "symmetric": False}
    ends |= {"arrayminus": [one["area"] - one["low"] for one in some]}
    forest.add_trace(
        go.Scatter(
            x=[one["area"] for one in some],
            y=[one["method"] for one in some],
            error_x=ends,
            mode="markers",
            name=name,
            marker={"symbol": symbol, "size": 10},
        )
    )
forest.update_yaxes(autorange="reversed")
forest.update_xaxes(
    title="answer's log-probability lost beyond random heads, nats (positive: hurts)",
    rangemode="tozero",
)
figures["areas"] = finished(forest, "A method's first heads set to their mean, over all sizes")
show(figures["areas"])
drawn = figures_of(compared, mean_rows)
figures |= drawn
for figure in drawn.values():
    show(figure)

# %% [markdown]
# ## Locate, then emit
# The needle is hidden from the best locate heads in the rows of the question alone (not in END, not
# in the answer); then the mass is read that emit heads of later layers lay on the needle while they
# answer. Beside it random heads of the same layers and norms, all heads at once (what can fall at
# most, in all emit heads), and the same heads set to their mean output.

# %%
locating, emitting = found.scores["locate_mass"], found.scores["emit"]
sure = does(locating, 0.05, 0.1)  # these first; where they are too few, the best of the others
locate = ranking_of(locating.mean + sure, params.hidden)
unsure = [str(head) for head in locate if not sure[head.layer, head.head]]
print("locate heads not beyond chance:", *unsure or ["none"])
later = np.arange(anatomy.n_layers)[:, None] > min(head.layer for head in locate)
emits = does(emitting, 0.05, 0.1)
watch = emits & later
for head in locate:
    watch[head.layer, head.head] = False
watched = [HeadId(*map(int, cell)) for cell in np.argwhere(watch)]
drawn = matched_random_heads(
    locate,
    anatomy.n_layers,
    anatomy.n_heads,
    draws=params.draws,
    seed=params.seed,
    norms=norms,
)
sets = {"nobody": (), "locate heads": locate, "all heads": anatomy.all_heads()}
serial = {
    mode: measure_serial(
        model,
        ablated_in,
        [*sets.values(), *drawn.draws],
        Ablation(mode, "question", means if mode == "mean" else None),
        trials=chosen,
        run=RunPart(run, f"serial, {mode}"),
        progress=phase(f"serial, {mode}"),
    )
    for mode in ("knock_out", "mean")
}
print(
    "locate:", *locate, "| emit, watched:", *watched, "|", drawn.note or "matching never fell short"
)
reach = {"locate heads": watch, "all heads": emits}  # whom they can lead
rows, by_head = [], []
for mode, read in serial.items():
    lost = read.log_prob[0] - read.log_prob
    for name, led in reach.items():
        mass = read.mass[:, :, led]  # [set, trial, head]
        fall = (mass[0] - mass).mean(axis=2)
        own, random = fall[list(sets).index(name)], fall[len(sets) :].mean(axis=1)
        interval = bootstrap_mean(own, read.needles, seed=params.seed)
        rows.append(
            {"ablation": mode, "heads": name, "watched": int(led.sum())}
            | {"mass before": float(mass[0].mean()), "fall": float(interval.mean)}
            | {"low": float(interval.low), "high": float(interval.high)}
            | {"share": float(interval.mean / mass[0].mean())}
            | {"random": float(random.mean()), "random highest": float(random.max())}
            | {"p": (1 + int((random >= interval.mean).sum())) / (1 + len(random))}
            | {"answer loses": float(lost[list(sets).index(name)].mean())}
            | {"random loses": float(lost[len(sets) :].mean())}
        )
    for layer, head in np.argwhere(emits).tolist():
        mass = read.mass[:, :, layer, head].mean(axis=1)
        row = {"ablation": mode, "head": str(HeadId(layer, head)), "led": bool(watch[layer, head])}
        row |= {"before": float(mass[0]), "without locate heads": float(mass[1])}
        row |= {"all hidden": float(mass[2]), "without random": float(mass[len(sets) :].mean())}
        by_head.append(row)
passed_on, by_head = polars.DataFrame(rows), polars.DataFrame(by_head)
display(passed_on, by_head.sort("ablation", "before", descending=[False, True]).head(24))

# %%
shown = (
    by_head.filter(polars.col("ablation") == "knock_out").sort("before", descending=True).head(12)
)
bars = go.Figure(
    [
        go.Bar(name=name, x=shown["head"].to_list(), y=shown[name].to_list(), marker_color=colour)
        for name, colour in (
            ("before", "#0072B2"),
            ("without random", "#56B4E9"),
            ("without locate heads", "#D55E00"),
            ("all hidden", "#999999"),
        )
    ]
)
bars.update_layout(barmode="group")
bars.update_yaxes(title="attention mass on the needle, answer rows")
bars.update_xaxes(title="emit head")
figures["serial"] = finished(bars, "Emit heads, with the needle hidden from others in the question")
show(figures["serial"])

# %% [markdown]
# ## Verdict
# Limits set beforehand. *Sparse*: at most a tenth of the heads reach 0.1 and half of all copying
# lies in at most 5 % of them. *Stable*: other needles give the same first k beyond chance (p at
# most 0.05) and a Spearman of 0.7. *Causal*: the area of the copy ranking lies above 0 and above
# all random draws. *Serial*: the fall of the emit heads' mass has an interval above 0 and is larger
# than under every random set.

# %%
spread_of = sparse.row(by_predicate=polars.col("score") == "copy", named=True)
copied = areas.filter(
    (polars.col("method") == "copy") & polars.col("ablation").str.starts_with("mean")
)
copied = copied.row(0, named=True)
other = stable.filter((polars.col("score") == "copy") & (polars.col("compared") == "other needles"))
behind = passed_on.row(
    by_predicate=(polars.col("ablation") == "knock_out") & (polars.col("heads") == "locate heads"),
    named=True,
)
least_p = 1 / (1 + params.draws)
best = areas.filter(polars.col("ablation").str.starts_with("mean"))
gentle = best.filter(~polars.col("method").is_in(harmful))
best = gentle.row(0, named=True) if len(gentle) else best.row(0, named=True)
verdict = polars.DataFrame(
    [
        {
            "claim": "sparse",
            "holds": spread_of["heads >= 0.1"] <= heads / 10 and spread_of["half"] <= heads / 20,
            "told by": f"{spread_of['heads >= 0.1']} of {heads} heads at 0.1; {spread_of['half']} "
            "hold half of it",
        },
        {
            "claim": "stable",
            "holds": bool(len(other))
            and other["p"][0] <= 0.05
            and (other["spearman"][0] or 0) >= 0.7,
            "told by": f"spearman {other['spearman'][0]:.2f}, overlap {other['overlap'][0]:.2f} by "
            f"{other['chance'][0]:.2f}"
            if len(other)
            else "no scores to compare",
        },
        {
            "claim": "causal",
            "holds": copied["low"] > 0 and copied["p"] <= least_p + 1e-9,
            "told by": f"area {copied['area']:.2f} ({copied['low']:.2f} to {copied['high']:.2f}) "
            f"nats, p {copied['p']:.3f}; most without harm: {best['method']}, "
            f"{best['area']:.2f}; harm: {', '.join(sorted(harmful)) or 'none'}",
        },
        {
            "claim": "locate, then emit",
            "holds": behind["low"] > 0 and behind["fall"] > behind["random highest"],
            "told by": f"{behind['share']:.0%} of the mass falls ({behind['fall']:.3f}, "
            f"{behind['low']:.3f} to {behind['high']:.3f}; random {behind['random']:.3f})",
        },
    ]
)
display(verdict)

# %% [markdown]
# ## Checks
# The claims are *reported*, not asserted; these must hold whatever the model does.

# %%
found_names = {needle.id for needle in found_on.needles}
assert not found_names & {needle.id for needle in judge.design.needles}, "judged where found"
assert {found_on.needle(n).kind for n in found.free.needles} == {"literal"}
for name in ("copy", "first", "emit", "locate_mass"):
    kept = found.scores[name].mean[np.isfinite(found.scores[name].mean)]
    assert kept.min() >= 0
    assert kept.max() <= 1 + 1e-6
assert (np.diagonal(compared.jaccard) == 1).all()
for some in curves.values():
    for curve in some.values():
        assert curve.random.shape == (params.draws, len(params.sizes), len(chosen))
        assert np.isfinite(curve.loss).all()
        # the same trials, by another path: one row alone, no ablation
        same = np.array(before) == 0
        assert np.allclose(curve.clean[same], judge.forced_logprob[chosen][same], atol=2e-2)
for read in serial.values():
    assert np.allclose(read.log_prob[0], clean, atol=2e-2)
    floor = min(head.layer for head in locate) + 1
    assert np.allclose(read.mass[1, :, :floor], read.mass[0, :, :floor], atol=1e-5), "no way back"
assert passed_on["p"].min() >= least_p - 1e-9
provenance = collect_provenance(
    **model.identity,
    data_sha256=found_on.sha256,
    prompt_template=found_on.asking,
    seed=params.seed,
    estimand="attention to needles; log-probability of the gold answer without heads",
)
tables = {
    "Verdict": verdict,
    "Trials": asked,
    "Sparse": sparse,
    "Stable": stable,
    "Reliability": reliable,
    "Areas beyond random heads": areas,
    "Losses": losses,
    "Agreement of methods": agreement,
    "Passkeys recalled": polars.DataFrame([passkey_recall]),
    "Gates beside copying heads": agreeing,
    "Locate, then emit": passed_on,
    "Emit heads": by_head,
}
report = render_report(
    title=f"Retrieval heads of {model.name}",
    claim="Retrieval heads are sparse, stable and causal (Wu et al. 2024); methods agree.",
    tables=tables,
    figures=figures,
    provenance=provenance,
    notes=[*found.notes, *(f"{row['claim']}: {row['told by']}" for row in verdict.to_dicts())],
)
pages = {f"{name}.html": figure_html(figure, title=name) for name, figure in figures.items()}
arrays = {f"scores.{name}": grid for name, grid in grids.items()}
arrays |= {f"serial.{mode}": read.mass for mode, read in serial.items()}
units = table(anatomy, found.scores, found.grids, found.roles)
print(run.folder if run.finished else run.finish(units, arrays, provenance, pages, report))
