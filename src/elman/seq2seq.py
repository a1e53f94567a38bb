"""Seq2Seq: an encoder reads a sequence, a decoder writes another one, of another length.

The parts are Sequential models of the layers that elman has; here is what joins them: the state that goes over, the
attention, which token the decoder is fed with, and the search for the best output. No arithmetic of its own but
that of the search.

Shapes: S steps of the source, T of the target, B sequences, V classes of tokens, K hypotheses of a beam.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from . import training
from ._blocks import past_the_ends
from ._locks import ForkSafeLock
from ._parameters import Parametrised
from .attention import AdditiveAttention, DotAttention
from .dense import Dense
from .embedding import Embedding
from .sequential import Composite, Placed, Sequential

__all__ = ["Seq2Seq"]


class Tape:
    """What `Seq2Seq.forward` keeps for `backward`. Never written to."""

    __slots__ = ("_model", "_encoder", "_decoder", "_attention", "_output", "_memory")

    def __init__(self, model: Seq2Seq, encoder: Any, decoder: Any, attention: Any, output: Any, memory: np.ndarray):
        self._model, self._encoder, self._decoder = model, encoder, decoder
        self._attention, self._output, self._memory = attention, output, memory

    def __repr__(self) -> str:
        return f"<tape of {self._model!r}>"


class _Pairs(training._Sequences):
    """Sources and targets for `fit`: the prediction has the target's lengths."""

    def __init__(self, model, x, y=training.ABSENT, where=""):
        super().__init__(model, x, y, where)
        if not self.timed:
            raise ValueError(f"{where}x: expected sources with a time axis, got {check._kind(x)}")
        if any(len(a) == 0 for a in self.x):
            i = [len(a) for a in self.x].index(0)
            raise ValueError(f"{where}x[{i}]: expected at least one step, got none")
        if y is training.ABSENT:
            return
        self._given, self._checked = [], []
        for i, item in enumerate(y):
            name = f"{where}y[{i}]"
            shape, _ = check.shape_and_dtype(name, item)
            tokens = check._whole_numbers(name, item, shape if len(shape) == 1 else ("T",)).astype(np.intp)
            _check_tokens(name, tokens, model._classes)
            if (tokens == model.end).any():
                raise ValueError(f"{name}: expected no end token ({model.end}), since it is put behind every target")
            self._given.append(tokens)
            self._checked.append(np.append(tokens, model.end))  # as `targets` hands them out

    def forward(self, model, indices, inputs, state, lengths, rng):
        target, n = self._target(indices)
        options = {"source_lengths": lengths, "target_lengths": n, "rng": rng}
        return *model.forward(inputs, target, **options), n + 1

    def call(self, model, indices, inputs, lengths):
        target, n = self._target(indices)
        return model(inputs, target, source_lengths=lengths, target_lengths=n), n + 1

    def unaligned(self, indices):
        raise ValueError("loss: expected one with a target for every step for a Seq2Seq, got ctc")

    def _target(self, indices):
        items = [self._given[i] for i in indices]
        return training._padded(items), np.array([len(item) for item in items])


class Seq2Seq(Composite):
    """An encoder-decoder network: sequences into sequences of other lengths.

        memory, state = encoder(source)
        h_t           = decoder(token_t-1, h_t-1), from that state          token_-1 is the start token
        context_t     = attention(h_t, memory)
        logits_t      = output([context_t, h_t])                            without attention: output(h_t)

    The state goes over as in Sutskever, Vinyals and Le 2014. The arrangement of the attention is that of Luong, Pham
    and Manning 2015 (section 3.1, global attention without input feeding): it looks with the decoder's h_t, behind the
    recurrent layers, and nothing of it goes back into them. So a whole target is one call of the decoder's kernels,
    and attention a few products over all its steps. Their attentional vector tanh(W [context_t, h_t]) is what an
    output of [Dense, Activation("tanh"), Dense] computes. AdditiveAttention has the scores of Bahdanau, Cho and Bengio
    2015; their own arrangement, with s_t-1 and in front of the recurrent layer, this is not.

    encoder : a Sequential, or a list of layers for one: at least one recurrent layer, Embedding in front if the source
        is integers.
    decoder : likewise; Embedding first, no bidirectional layer. Its recurrent layers start with the final states of the
        encoder's, first with first and so on, and must have their forms and sizes. Of a bidirectional one the two
        directions' states go side by side, so that its decoder has twice its hidden_size.
    output : likewise; no recurrent layer, Dense last: one logit for each of the V tokens that can be written.
    attention : DotAttention, AdditiveAttention or None.
    start, end : the tokens before and after each target, among those of the decoder's Embedding; `end` below V. They
        come and go here: no target that is returned holds them, and none that is given to `fit` may hold `end`.
    teacher_forcing : 0 to 1: how likely the decoder is fed, in `forward`, with the true token before, else with the one
        that it would have written itself (scheduled sampling, Bengio et al. 2015, a coin for each token). May be set
        at any time, between epochs by a `Callback`. Below 1 the target is first written step by step, without the
        decoder's and the output's dropout, to see what is fed; no gradient goes through that choice. A call and
        `evaluate` always feed the true token.
    seed : of these coins, if `forward` is given no rng. None is random.

    `params`, `load_params`, `edit` and the optimisers use names like "encoder.1.weight_ih_l0" and
    "attention.weight_score". A model can be pickled, deep-copied, converted by `astype` and kept by `elman.save`. `fit`
    and `evaluate` are those of `Sequential`: x the sources, batch first or a list of arrays; y the targets, a list of N
    arrays of integers (T_i,), or (N, T); a loss with a target for every step, "softmax_cross_entropy". tbptt does not
    go with it. Calls, `forward` and `decode` are time first.

    TypeError, ValueError: parts that do not fit together, named in the message.

    >>> model = Seq2Seq(
    ...     [Embedding(60, 32), GRU(32, 64, bidirectional=True)],
    ...     [Embedding(13, 32), GRU(32, 128)],
    ...     [Dense(256, 128), Activation("tanh"), Dense(128, 12)],
    ...     attention=DotAttention(),
    ...     start=12,
    ...     end=11,
    ... )
    >>> model.fit(sources, targets, loss="softmax_cross_entropy", epochs=10, clip_norm=1.0)
    >>> written = model.predict(sources, beam_width=4)
    """

    encoder: Sequential
    decoder: Sequential
    output: Sequential
    attention: DotAttention | AdditiveAttention | None
    start: int
    end: int

    def __init__(
        self,
        encoder: Sequential | Sequence[Any],
        decoder: Sequential | Sequence[Any],
        output: Sequential | Sequence[Any],
        *,
        attention: DotAttention | AdditiveAttention | None = None,
        start: int,
        end: int,
        teacher_forcing: float = 1.0,
        seed: int | None = None,
    ):
        self.encoder, self.decoder = _sequential("encoder", encoder), _sequential("decoder", decoder)
        self.output = _sequential("output", output)
        if attention is not None and not isinstance(attention, (DotAttention, AdditiveAttention)):
            raise TypeError(f"attention: expected DotAttention, AdditiveAttention or None, got {attention!r}")
        self.attention = attention
        self._check_parts()
        self.dtype = self.encoder.dtype
        self._classes = self.output.layers[-1].out_features
        tokens = self.decoder.layers[0].num_embeddings
        self.start = check.integer("start", start, 0, tokens - 1)
        self.end = check.integer("end", end, 0, self._classes - 1)
        self.teacher_forcing = teacher_forcing
        self._rng = np.random.default_rng(None if seed is None else check.integer("seed", seed, 0))
        self._drawing = ForkSafeLock()
        parts = {"encoder": self.encoder, "decoder": self.decoder, "attention": attention, "output": self.output}
        self._weighted = []
        for name, part in parts.items():
            if isinstance(part, Sequential):
                self._weighted += [(f"{name}.{i}", layer) for i, layer in part._weighted]
            elif isinstance(part, Parametrised):
                self._weighted.append((name, part))
        self._fixed = frozenset(("encoder", "decoder", "output", "attention", "start", "end", "dtype"))

    @property
    def teacher_forcing(self) -> float:
        """How likely `forward` feeds the true token."""
        return self._teacher_forcing

    @teacher_forcing.setter
    def teacher_forcing(self, value: float) -> None:
        self._teacher_forcing = check.number("teacher_forcing", value, 0.0, 1.0)

    def __repr__(self) -> str:
        attention = "" if self.attention is None else f", attention={self.attention!r}"
        ratio = "" if self.teacher_forcing == 1 else f", teacher_forcing={self.teacher_forcing!r}"
        parts = f"{self.encoder!r}, {self.decoder!r}, {self.output!r}"
        return f"Seq2Seq({parts}{attention}, start={self.start}, end={self.end}{ratio})"

    # ------------------------------------------------------------------------------------------------ computing

    def __call__(
        self,
        source: ArrayLike,
        target: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        return_weights: bool = False,
    ) -> Any:
        """What the model says of each token of given targets, without dropout: see `decode` to have it write.

        source : what the encoder takes, (S, B) integers for Embedding, else (S, B, I).
        target : (T, B) integers 0 to V - 1, without start and end.
        source_lengths, target_lengths : (B,) integers 0 to S and to T; what is past a sequence's end has no effect.
        return_weights : True to get the attention's weights too.

        Returns logits (T+1, B, V): row t is about token t, and in the row behind its last token the end is due; 0 after
        that. With return_weights (logits, weights), weights (T+1, B, S).

        ValueError, TypeError: a wrong argument; what a layer refuses is told with its place.
        """
        if check.boolean("return_weights", return_weights) and self.attention is None:
            raise ValueError("return_weights: expected False, since this model has no attention")
        target, ends = self._checked_target(target, target_lengths)
        source_lengths = self._checked_source(source, source_lengths, target.shape[1])
        memory, state = self._encoded(source, source_lengths)
        with Placed("decoder"):
            features, weights = self.decoder(self._fed(target), state, lengths=ends), None
        if self.attention is not None:
            with Placed("attention"):
                context, weights = self.attention(features, memory, lengths=source_lengths, return_weights=True)
            features = np.concatenate([context, features], axis=-1)
        with Placed("output"):
            logits = self.output(features, lengths=ends)
        return (logits, weights) if return_weights else logits

    def forward(
        self,
        source: ArrayLike,
        target: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[np.ndarray, Tape]:
        """As a call, with dropout and scheduled sampling, and a tape for `backward`. No layer changes.

        rng : where the coins of `teacher_forcing` and the masks of dropout come from: None is the model's and the
            layers' own generators, a whole number or a `numpy.random.Generator` makes them repeatable.

        Returns (logits, tape).

        >>> logits, tape = model.forward(source, target, source_lengths=n, target_lengths=m)
        >>> labels, ends = model.labels(target, m)
        >>> loss, dlogits = elman.softmax_cross_entropy(logits, labels, lengths=ends)
        >>> _, grads = model.backward(tape, dlogits)
        """
        if rng is not None and not isinstance(rng, np.random.Generator):
            rng = np.random.default_rng(check.integer("rng", rng, 0))
        target, ends = self._checked_target(target, target_lengths)
        source_lengths = self._checked_source(source, source_lengths, target.shape[1])
        own = self._drawn(target.shape, rng)
        with Placed("encoder"):
            memory, encoder_tape = self.encoder.forward(source, lengths=source_lengths, rng=rng)
        state = self._bridged(encoder_tape.state)
        fed = self._fed(target)
        if own is not None:
            self._mix_in(fed, own, state, memory, source_lengths)
        with Placed("decoder"):
            features, decoder_tape = self.decoder.forward(fed, state, lengths=ends, rng=rng)
        attention_tape = None
        if self.attention is not None:
            with Placed("attention"):
                context, attention_tape = self.attention.forward(features, memory, lengths=source_lengths)
            features = np.concatenate([context, features], axis=-1)
        with Placed("output"):
            logits, output_tape = self.output.forward(features, lengths=ends, rng=rng)
        return logits, Tape(self, encoder_tape, decoder_tape, attention_tape, output_tape, memory)

    def backward(
        self, tape: Tape, dlogits: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[Any, Mapping[str, np.ndarray]]:
        """The gradient of a loss by the source and by every weight.

        tape : from `forward` of this model, with the weights unchanged since. It is not changed: use it again.
        dlogits : (T+1, B, V), the loss's gradient by the logits. Past a target's end it is never read.
        grads : writable arrays under the names of `params`, which the gradients are added to; None: new ones.

        Returns (dsource, grads); dsource is None where the source is integers.

        ValueError, TypeError: a wrong argument; `grads` is then as it was.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward of this model returned, got {type(tape).__name__}")
        if tape._model is not self:
            raise ValueError(f"tape: expected one of this model, got one of another, {tape._model!r}")
        if grads is not None:
            self._checked_grads(grads, (("dlogits", dlogits),) if isinstance(dlogits, np.ndarray) else ())
        found: dict[str, Mapping[str, np.ndarray]] = {}  # the last part first
        with Placed("output"):
            d, _, found["output"] = self.output._backward(tape._output, dlogits)
        if self.attention is None:
            dmemory = np.zeros_like(tape._memory)
        else:
            M = tape._memory.shape[2]
            dcontext, d = d[..., :M], d[..., M:]
            with Placed("attention"):
                dquery, dmemory, found["attention"] = self.attention.backward(tape._attention, dcontext)
            d = d + dquery
        with Placed("decoder"):
            _, dstate, found["decoder"] = self.decoder._backward(tape._decoder, d)
        with Placed("encoder"):
            dsource, _, found["encoder"] = self.encoder._backward(tape._encoder, dmemory, self._bridged_back(dstate))
        new = {f"{part}.{name}": g for part in reversed(found) for name, g in found[part].items()}
        return dsource, self._accumulated(grads, new)

    def labels(
        self, target: ArrayLike, target_lengths: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What the logits should say: the targets with the end token behind each, (T+1, B), and their lengths (B,), or
        None if none are given."""
        target, ends = self._checked_target(target, target_lengths)
        T, B = target.shape
        labels = np.concatenate([target, np.zeros((1, B), target.dtype)])
        labels[T if ends is None else ends - 1, np.arange(B)] = self.end
        return labels, ends

    def decode(
        self,
        source: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        max_length: int = 100,
        beam_width: int = 1,
        length_penalty: float = 1.0,
        return_scores: bool = False,
    ) -> Any:
        """What the model writes for each source, without dropout: greedily, or the best that a beam search finds.

        source, source_lengths : as in a call.
        max_length : at most so many tokens are written, the end token counted; one that has no end by then is taken as
            it is.
        beam_width : K, how many hypotheses are kept at each step; 1 is greedy. An ended one stays among them while no
            others are better.
        length_penalty : hypotheses are compared by their log-probability / (tokens with the end) ** length_penalty: 0
            does not normalise, 1 takes the mean; more favours longer ones.
        return_scores : True to get these figures too, (B,) in float64.

        Returns a list of B arrays of tokens, without start and end; with return_scores (list, scores).

        ValueError, TypeError: a wrong argument.

        >>> tokens = model.decode(source, source_lengths=n, beam_width=4)
        """
        max_length, K = check.integer("max_length", max_length, 1), check.integer("beam_width", beam_width, 1)
        length_penalty = check.number_below("length_penalty", length_penalty, 0)
        check.boolean("return_scores", return_scores)
        source_lengths = self._checked_source(source, source_lengths)
        memory, state = self._encoded(source, source_lengths)
        B, V = memory.shape[1], self._classes
        remembered = self._remembered(memory, source_lengths)

        # Hypothesis k of sequence b is row k * B + b of the decoder's batch. At first there is one; -inf is none.
        rows = np.tile(np.arange(B), K)
        token = np.full((K, B), self.start)
        tokens = np.empty((min(max_length, 64), K, B), np.intp)
        log_p, score = np.full((K, B), -np.inf), np.zeros((K, B))
        log_p[0] = 0
        counts, ended = np.zeros((K, B), np.intp), np.zeros((K, B), bool)
        for t in range(max_length):
            state = tuple(_each(partial(np.take, indices=rows, axis=1), part) for part in state)
            logits = self._next(token, state, remembered).astype(np.float64)
            with np.errstate(all="ignore"):
                logits -= logits.max(axis=2, keepdims=True)
                logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
                logits[ended] = -np.inf
                logits[ended, self.end] = 0  # the only way on, at no cost
                log_ps = log_p[:, :, None] + logits
                counts = counts + ~ended
                scores = log_ps / counts[:, :, None] ** length_penalty
            best, score = _largest(scores.swapaxes(0, 1).reshape(B, K * V), K)
            (k, token), b = np.divmod(best, V), np.arange(B)
            log_p = np.where(np.isneginf(score), -np.inf, log_ps[k, b, token])
            counts, ended = counts[k, b], ended[k, b] | (token == self.end)
            if t == len(tokens):
                tokens = np.concatenate([tokens, np.empty_like(tokens)])
            tokens[:t] = tokens[:t, k, b]
            tokens[t] = token
            rows = (k * B + b).reshape(-1)
            if (ended | np.isneginf(score)).all():
                break
        written = [tokens[:n, 0, b].copy() for b, n in enumerate(counts[0] - ended[0])]
        return (written, score[0]) if return_scores else written

    # ------------------------------------------------------------------------------------------------- training

    _training_data = _Pairs

    def _timed_axes(self, integers: bool) -> int:
        return self.encoder._timed_axes(integers)

    def _takes_features(self) -> bool:
        return self.encoder._takes_features()

    fit = training.fit
    evaluate = training.evaluate

    def predict(
        self,
        x: training.Data,
        *,
        batch_size: int = 32,
        max_length: int = 100,
        beam_width: int = 1,
        length_penalty: float = 1.0,
    ) -> list[np.ndarray]:
        """What the model writes for each source, in the order of x: `decode` over batches.

        x : as in `fit`. The other arguments are those of `decode`.

        Returns a list of N arrays of tokens (T_i,), without start and end.
        """
        data = _Pairs(self, x)
        results: list[Any] = [None] * len(data)
        options = {"max_length": max_length, "beam_width": beam_width, "length_penalty": length_penalty}
        for indices in data.by_length(check.integer("batch_size", batch_size, 1)):
            source, lengths = data.inputs(indices)
            for i, written in zip(indices, self.decode(source, source_lengths=lengths, **options)):
                results[i] = written
        return results

    # ------------------------------------------------------------------------------------------ weights and copies

    def astype(self, dtype: DTypeLike) -> Seq2Seq:
        """A copy of the model that works in another dtype, float32 or float64."""
        state = self.__getstate__()
        for name in ("encoder", "decoder", "output", "attention"):
            if isinstance(state[name], Parametrised):
                state[name] = state[name].astype(dtype)
        other = object.__new__(Seq2Seq)
        other.__setstate__(state)
        return other

    def __getstate__(self) -> dict[str, Any]:
        names = ("encoder", "decoder", "output", "attention", "start", "end", "teacher_forcing")
        with self._drawing.held():
            return {name: getattr(self, name) for name in names} | {"_rng": copy.deepcopy(self._rng)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments = dict(state)
        rng = arguments.pop("_rng")
        Seq2Seq.__init__(self, **arguments)
        self._rng = rng

    # ---------------------------------------------------------------------------------------------- inner parts

    def _check_parts(self) -> None:
        """That the layers are different, of one dtype, of the right kinds, and that the encoder's states fit."""
        parts = {"encoder": self.encoder, "decoder": self.decoder, "output": self.output}
        layers = [layer for part in parts.values() for layer in part.layers]
        if len({id(layer) for layer in layers}) < len(layers):
            raise ValueError("decoder, output: expected layers that are in no other part, got one twice")
        for name, part in {**parts, "attention": self.attention}.items():
            if isinstance(part, Parametrised) and part.dtype != self.encoder.dtype:
                raise TypeError(f"{name}: expected dtype {self.encoder.dtype} as the encoder, got {part.dtype}")
        if self.encoder._pools:
            raise ValueError("encoder: expected no Pooling, since the memory has all steps")
        first, last = self.decoder.layers[0], self.output.layers[-1]
        if not isinstance(first, Embedding):
            raise ValueError(f"decoder: expected Embedding as its first layer, got {first!r}")
        with Placed("decoder"):
            self.decoder._check_streams("decode")
        if any(takes & {"state", "lengths"} for takes in self.output._takes):
            raise ValueError(f"output: expected layers for each step by itself, got {self.output!r}")
        if not isinstance(last, Dense):
            raise ValueError(f"output: expected Dense as its last layer, got {last!r}")
        if last.out_features > first.num_embeddings:
            wanted = f"at most the {first.num_embeddings} tokens of the decoder's Embedding"
            raise ValueError(f"output: expected {wanted}, got {last.out_features}")
        self._check_features()
        given, wanted_states = self.encoder.zero_state(1), self.decoder.zero_state(1)
        if not given:
            raise ValueError("encoder: expected a recurrent layer, got none")
        forms = [[_form(state) for state in states] for states in (self._bridged(given), wanted_states)]
        if forms[0] != forms[1]:
            raise ValueError(
                f"decoder: expected recurrent layers with the states that the encoder gives, {forms[0]}, got {forms[1]}"
            )

    def _check_features(self) -> None:
        """That the attention takes what the encoder and the decoder give, and the output what comes of both."""
        memory, query, taken = self.encoder._features[1], self.decoder._features[1], self.output._features[0]
        if isinstance(self.attention, DotAttention) and None not in (memory, query) and memory != query:
            raise ValueError(
                "attention: expected an encoder and a decoder with the same number of features for DotAttention, "
                f"got {memory} and {query}"
            )
        if isinstance(self.attention, AdditiveAttention):
            for part, name, given in (("decoder", "query_size", query), ("encoder", "memory_size", memory)):
                size = getattr(self.attention, name)
                if given not in (None, size):
                    raise ValueError(f"attention: expected {name} {given}, the features of the {part}, got {size}")
        if self.attention is None:
            given, what = query, f"the {query} features of the decoder's {self.decoder.layers[-1]!r}"
        else:
            given = None if memory is None or query is None else memory + query
            what = f"{given} features, the context's {memory} and the decoder's {query}"
        if None not in (given, taken) and given != taken:
            raise ValueError(f"output: expected layers that take {what}, got {self.output!r}, which takes {taken}")

    def _check_streams(self, who: str) -> None:
        raise ValueError(f"{who}: expected None, since a Seq2Seq needs whole sequences")

    def _checked_source(self, source: Any, lengths: Any, B: int | None = None) -> np.ndarray | None:
        """The source's lengths; its values are the encoder's business."""
        shape, _ = check.shape_and_dtype("source", source)
        rank = 2 if isinstance(self.encoder.layers[0], Embedding) else 3
        if len(shape) != rank:
            raise ValueError(f"source: expected shape {'(S, B)' if rank == 2 else '(S, B, I)'}, got {shape}")
        if B is not None and shape[1] != B:
            raise ValueError(f"source: expected {B} sequences as in target, got {shape[1]}")
        return check.lengths("source_lengths", lengths, *shape[:2])

    def _checked_target(self, target: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """A copy that is 0 past the ends, and the lengths with the end token."""
        shape, _ = check.shape_and_dtype("target", target)
        if len(shape) != 2:
            raise ValueError(f"target: expected shape (T, B), got {shape}")
        a = np.array(check._whole_numbers("target", target, shape), np.intp)
        lengths = check.lengths("target_lengths", lengths, *shape)
        if lengths is not None:
            a[past_the_ends(lengths, len(a))] = 0
        _check_tokens("target", a, self._classes)
        return a, None if lengths is None else lengths + 1

    def _fed(self, target: np.ndarray) -> np.ndarray:
        """What goes into the decoder, (T+1, B)."""
        return np.concatenate([np.full((1, target.shape[1]), self.start, target.dtype), target])

    def _encoded(self, source: Any, lengths: np.ndarray | None) -> tuple[np.ndarray, tuple[Any, ...]]:
        """The memory and the decoder's first state."""
        with Placed("encoder"):
            memory, state = self.encoder(source, lengths=lengths, return_state=True)
        return memory, self._bridged(state)

    def _drawn(self, shape: tuple[int, ...], rng: np.random.Generator | None) -> np.ndarray | None:
        """Where the decoder is fed with what it writes, (T, B) bool; None: nowhere."""
        if self.teacher_forcing == 1:
            return None
        if rng is not None:
            return rng.random(shape) >= self.teacher_forcing
        with self._drawing.held():
            return self._rng.random(shape) >= self.teacher_forcing

    def _mix_in(self, fed, own, state, memory, lengths):
        """In fed (T+1, B), behind the start: what the model writes, where `own` says so."""
        state = tuple(_each(np.copy, part) for part in state)
        remembered = self._remembered(memory, lengths)
        for t, chosen in enumerate(own):
            written = self._next(fed[t : t + 1], state, remembered)[0].argmax(axis=1)
            np.copyto(fed[t + 1], written, where=chosen)

    def _remembered(self, memory, lengths):
        return None if self.attention is None else self.attention._remembered(memory, lengths)

    def _next(self, token, state, remembered):
        """One step: token (K, B) -> logits (K, B, V). The state, of K * B sequences, is changed in place."""
        with Placed("decoder"):
            h = self.decoder.step(token.reshape(-1), state)
        features = h.reshape(*token.shape, h.shape[1])
        if self.attention is not None:
            context, *_ = self.attention._attend(features, remembered)
            features = np.concatenate([context, features], axis=-1)
        with Placed("output"):
            return self.output(features)

    def _bridged(self, states):
        """The decoder's first states from the encoder's final ones: two directions, (2L, B, H), go side by side, into
        (L, B, 2H)."""

        def side_by_side(a):
            L, B, H = len(a) // 2, *a.shape[1:]
            return a.reshape(L, 2, B, H).swapaxes(1, 2).reshape(L, B, 2 * H)

        return tuple(
            _each(side_by_side, state) if layer.bidirectional else state
            for layer, state in zip(_recurrent(self.encoder), states, strict=True)
        )

    def _bridged_back(self, dstates):
        """The way back, for gradients."""

        def one_by_one(a):
            L, B, H = *a.shape[:2], a.shape[2] // 2
            return a.reshape(L, B, 2, H).swapaxes(1, 2).reshape(2 * L, B, H)

        return tuple(
            _each(one_by_one, state) if layer.bidirectional else state
            for layer, state in zip(_recurrent(self.encoder), dstates, strict=True)
        )


def _sequential(name, value):
    if isinstance(value, Sequential):
        return value
    with Placed(name):
        return Sequential(value)


def _recurrent(model):
    return [layer for layer, takes in zip(model.layers, model._takes) if "state" in takes]


def _each(function, state):
    """A state with a function done to each of its arrays."""
    return type(state)(*map(function, state)) if isinstance(state, tuple) else function(state)


def _form(state):
    """A state's shapes without the batch."""
    parts = state if isinstance(state, tuple) else (state,)
    return tuple((len(a), a.shape[2]) for a in parts)


def _check_tokens(name, a, count):
    wrong = (a < 0) | (a >= count)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}: expected 0 to {count - 1} (the output's classes), got {int(a[at])} at {at}")


def _largest(scores, count):
    """The places (count, N) of each row's largest scores, the first of equal ones first, and these scores. Changes
    `scores`: where all that is left is -inf, it finds places again, but as -inf."""
    places = np.empty((count, len(scores)), np.intp)
    values = np.empty(places.shape)
    rows = np.arange(len(scores))
    for k in range(count):
        places[k] = scores.argmax(axis=1)
        values[k] = scores[rows, places[k]]
        scores[rows, places[k]] = -np.inf
    return places, values
