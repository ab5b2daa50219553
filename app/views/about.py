"""What the scores mean and what they do not."""

import streamlit as st

st.title("What the numbers mean")
st.markdown(
    """
**The question.** A model that is asked something can answer from its weights (*memory answer*) or
from the text in front of it (*context answer*). When the two disagree, some attention heads speak
for one and some for the other. These pages help to find them, on a model that runs on this
machine.

**Scores of this prompt.** Each head's output at END, the last position of the prompt, is set to
zero; everything after it is recomputed token by token with all other heads held still (*direct
effect*), and the change of the answers' logits is read. Memory score: fall of
logit(memory) − logit(context); positive means that the head speaks for the memory answer. Context
score: the same with the sign turned. One prompt gives no uncertainty: use it to look around, not to
conclude.

**Scores of a run.** `mnemoscope heads score` asks many subjects and replaces each head by its value
in a corrupted prompt: another subject (*memory score*) or another claim (*context score*). These
are two separate measurements, with intervals over subjects and q-values (Benjamini-Hochberg).
Cells with q > 0.05 are faded.

**Switching heads, edges or units off.** Every position is edited, in the prompt and while answering
(of units all but a prompt's first token). That is the effect of pruning, not the direct effect of
the grid: later heads see the change too. Heads and units are zeroed, set to their mean on neutral
text or scaled. Edges are what a head sees: those to chosen tokens are cut or weighed anew, or all
get the same weight. The same is done to 20 sets of random heads and units of the same layers that
put out as much, or of other tokens (to 5 where 20 would take long). If the change lies inside their
range, the page says *not better than random*. Even a set that does nothing special falls outside
the range of 20 different sets one time in ten, and more often where there are fewer different sets;
the page says how often. Rates make the same change while many facts or needles are asked. `prune`
writes changes of heads into a checkpoint; edges have no weights of their own.

**Patterns.** Attention says where a head looks, not what it moves. Much of it often rests on the
first token (the *sink*), which carries little; the share is stated.

**Edges.** The strongest weights of a head, each beside that of *even attention*: the same weight
for every token in sight.

**What each layer would say.** The logit lens takes the stream after a layer through the model's own
last norm and unembedding. Dashes are the same tokens in random orders: what an answer gets there it
owes to the words alone.

**Heads by role.** A head has a role by a test of many subjects or by its rank, and roles combine by
*and*, *or* and *not*. The scores of a set stand beside random sets of the same layers; a score that
chose the set proves nothing.

**Relation neurons.** `mnemoscope neurons find` scores every unit of the MLPs by how well it tells
the prompts of a relation from those of all others (*average precision*, 1 is perfect), in the worst
of several wordings, for the better of its two directions. Every real relation has to beat
pseudo-relations, glued from halves of two, and is judged on new subjects and in new wordings. A
unit that tells a relation need not be used by the model: that page sets units to their mean on
neutral text, to zero or scales them, and does the same to random units of the same layers that
write as much.

**Who reads the context.** A statement (the *needle*) is hidden in neutral text and asked about.
*Copied* is the share of the answer's tokens for which a head's highest attention weight lay on the
answer in the needle, on the very token that was then predicted. Rows are read twice: with the gold
answer put behind the question (*forced*, defined where the model fails too) and with what it says
by itself (*free*, what happened). *Asking* rows are those of the question, *answering* rows those
that predict the answer. One trial is an anecdote; `mnemoscope retrieval score` measures many. A
text of your own, pasted or a file, can stand in for the haystack: the needle is then the first of
its sentences that says the answer.

**Maps.** A cell of a map stands for a stretch of queries and one of keys: *peak* is the highest
weight in it, *mass* the share of the queries' attention on all of its keys. Colours are
logarithmic. Stretches end where needle, rival and question do, so that none of them is split.

**Which documents.** The longest stretches of a text that stand verbatim in an indexed corpus, cut
at sentences and to whole words. *E-value*: how often chance would have such a stretch in a corpus
of that size, words drawn one by one as often as they occur there; an idiom is no accident and
surprises it too. *Contrast*: its rate here over that in a benign corpus. A match is a *verbatim
occurrence, not a cause*: models put words together that no document holds, and documents shape
what is said in other words. *Inside*: how much more heads and MLP units write at the tokens that
predict the span than on neutral text; that is activity, and no cause either. Texts of an index
labelled *risk* stay on the disk until you ask for them.

**Both ways.** A pair told as "A is B" is asked from A and from B. The rank is that of the whole
right name among all names of its kind; chance is the middle of the list.

**Limits.** Probabilities are those of an answer's first token. Two answers that start with the same
token cannot be told apart. A head may do both jobs, and the same head may do another one on
another prompt.

**Conventions.** Layers and heads count from zero; *head* is a query head. Under grouped-query
attention several query heads read one key/value head; the page says which.
"""
)
