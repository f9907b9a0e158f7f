"""Kernels of the social embedding: random walks, skip-gram and edge sampling.

Every walk and every sample draws from its own SplitMix64 stream, addressed by
its number, so neither the number of threads nor their order changes what is
drawn. What threads may change is the order in which vectors are updated
(Hogwild); with one thread all bits are fixed.

Source: node2vec (Grover and Leskovec, KDD 2016), LINE (Tang et al., WWW 2015),
skip-gram with negative sampling (Mikolov et al., NIPS 2013); the rejection
sampling of second-order steps as in KnightKing (Yang et al., SOSP 2019).
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["alias_table", "train_line", "train_skip_gram", "walk"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)
_S11 = np.uint64(11)
#: Rejections after which a step is drawn from the exact table instead.
_PATIENCE = 32
#: Largest argument of the logistic function that still teaches something.
_SATURATED = 12.0


@njit(inline="always")
def _mix(x):
    """Return the finaliser of SplitMix64."""
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@njit(inline="always")
def _stream(seed, number):
    """Return the first state of stream ``number``."""
    return _mix(seed + _GOLDEN * (np.uint64(number) + np.uint64(1)))


@njit(inline="always")
def _below(bits, n):
    """Map 64 random bits to 0 ... n - 1 for n < 2^32."""
    return np.int64(((bits >> _S32) * np.uint64(n)) >> _S32)


@njit(inline="always")
def _unit(bits):
    """Map 64 random bits to [0, 1)."""
    return np.float64(bits >> _S11) * 1.1102230246251565e-16


@njit(cache=True, nogil=True)
def _are_friends(ptr, friends, u, v):
    low, high = ptr[u], ptr[u + 1]
    while low < high:
        middle = (low + high) >> 1
        if friends[middle] < v:
            low = middle + 1
        else:
            high = middle
    return low < ptr[u + 1] and friends[low] == v


@njit(cache=True, nogil=True)
def _bias(ptr, friends, before, candidate, back, away):
    """Return the unnormalised weight of a step: 1/p back, 1 beside, 1/q away."""
    if candidate == before:
        return back
    return 1.0 if _are_friends(ptr, friends, before, candidate) else away


@njit(cache=True, nogil=True)
def walk(ptr, friends, starts, first, p, q, seed, out):
    """Fill ``out`` int32 [m, length] with walks from ``starts``; -1 where nobody is left.

    Walk i is number ``first + i`` of the seed. A step from v, having come from
    t, goes to friend x with weight 1/p if x is t, 1 if x and t are friends,
    else 1/q; the first step is uniform.
    """
    length = out.shape[1]
    back, away = 1.0 / p, 1.0 / q
    top = max(back, 1.0, away)
    plain = p == 1.0 and q == 1.0
    for i in range(len(starts)):
        state = _stream(seed, first + i)
        here = np.int64(starts[i])
        before = np.int64(-1)
        out[i, 0] = here
        for step in range(1, length):
            begin = ptr[here]
            degree = ptr[here + 1] - begin
            if degree == 0:
                out[i, step:] = -1
                break
            found = np.int64(-1)
            if before < 0 or plain or degree == 1:
                state += _GOLDEN
                found = np.int64(friends[begin + _below(_mix(state), degree)])
            else:
                for _ in range(_PATIENCE):
                    state += _GOLDEN
                    x = np.int64(friends[begin + _below(_mix(state), degree)])
                    state += _GOLDEN
                    if _unit(_mix(state)) * top < _bias(ptr, friends, before, x, back, away):
                        found = x
                        break
                if found < 0:  # hubs with extreme p or q: one pass over the friends, as exact
                    total = 0.0
                    for j in range(degree):
                        x = np.int64(friends[begin + j])
                        total += _bias(ptr, friends, before, x, back, away)
                    state += _GOLDEN
                    left = _unit(_mix(state)) * total
                    for j in range(degree):
                        found = np.int64(friends[begin + j])
                        left -= _bias(ptr, friends, before, found, back, away)
                        if left < 0.0:
                            break
            out[i, step] = found
            before = here
            here = found


@njit(cache=True, nogil=True)
def alias_table(weights, accept, other):
    """Fill the alias table of ``weights`` (float64 [n], >= 0, sum > 0).

    Draw i uniformly, keep it with probability ``accept[i]``, else take
    ``other[i]`` (Vose 1991).
    """
    n = len(weights)
    total = 0.0
    for i in range(n):
        total += weights[i]
    small = np.empty(n, dtype=np.int64)
    large = np.empty(n, dtype=np.int64)
    n_small = n_large = 0
    for i in range(n):
        accept[i] = weights[i] * n / total
        other[i] = i
        if accept[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        low = small[n_small]
        high = large[n_large - 1]
        other[low] = high
        accept[high] -= 1.0 - accept[low]
        if accept[high] < 1.0:
            n_large -= 1
            small[n_small] = high
            n_small += 1
    # What is left differs from 1 by rounding only.
    for j in range(n_small):
        accept[small[j]] = 1.0
    for j in range(n_large):
        accept[large[j]] = 1.0


@njit(inline="always")
def _draw_alias(accept, other, bits, more):
    i = _below(bits, len(accept))
    return i if _unit(more) < accept[i] else np.int64(other[i])


@njit(inline="always")
def _dot(a, i, b, j, d):
    """Return <a[i], b[j]>; eight sums in a fixed order, so the bits do not depend on the CPU."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0.0)
    whole = d - d % 8
    for k in range(0, whole, 8):
        s0 += a[i, k] * b[j, k]
        s1 += a[i, k + 1] * b[j, k + 1]
        s2 += a[i, k + 2] * b[j, k + 2]
        s3 += a[i, k + 3] * b[j, k + 3]
        s4 += a[i, k + 4] * b[j, k + 4]
        s5 += a[i, k + 5] * b[j, k + 5]
        s6 += a[i, k + 6] * b[j, k + 6]
        s7 += a[i, k + 7] * b[j, k + 7]
    for k in range(whole, d):
        s0 += a[i, k] * b[j, k]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@njit(cache=True, nogil=True)
def _learn(source, u, target, v, accept, other, negatives, rate, state, step):
    """One positive pair (u, v) and its negatives; return the new random state."""
    d = source.shape[1]
    step[:] = 0.0
    for n in range(negatives + 1):
        goal = np.float32(1.0)
        t = v
        if n > 0:
            goal = np.float32(0.0)
            state += _GOLDEN
            bits = _mix(state)
            state += _GOLDEN
            t = _draw_alias(accept, other, bits, _mix(state))
            if t == v:
                continue
        x = _dot(source, u, target, t, d)
        if x > _SATURATED:
            guess = np.float32(1.0)
        elif x < -_SATURATED:
            guess = np.float32(0.0)
        else:
            guess = np.float32(1.0) / (np.float32(1.0) + np.exp(-x))
        g = (goal - guess) * rate
        for k in range(d):
            step[k] += g * target[t, k]
            target[t, k] += g * source[u, k]
    for k in range(d):
        source[u, k] += step[k]
    return state


@njit(cache=True, nogil=True)
def train_skip_gram(
    walks, first, centre, context, accept, other, window, negatives, rate, fall, seed
):
    """Train ``centre`` and ``context`` (float32 [n, d], changed in place) on walks.

    As word2vec does, each position looks 1 ... ``window`` steps to both sides,
    the reach drawn anew. The learning rate is ``rate`` at the first walk and
    falls by ``fall`` a walk.
    """
    length = walks.shape[1]
    step = np.empty(centre.shape[1], dtype=np.float32)
    lowest = np.float32(rate * 1e-4)
    for i in range(len(walks)):
        state = _stream(seed, first + i)
        now = max(np.float32(rate - fall * i), lowest)
        for a in range(length):
            u = np.int64(walks[i, a])
            if u < 0:
                break
            state += _GOLDEN
            reach = 1 + _below(_mix(state), window)
            for b in range(max(0, a - reach), min(length, a + reach + 1)):
                v = np.int64(walks[i, b])
                if b == a or v < 0 or v == u:
                    continue
                state = _learn(centre, u, context, v, accept, other, negatives, now, state, step)


@njit(cache=True, nogil=True)
def train_line(
    ends, others, first, count, source, target, accept, other, negatives, rate, fall, seed
):
    """Train on ``count`` edges drawn uniformly, in a direction drawn by a coin.

    First order: ``source`` and ``target`` are the same array. Second order:
    ``target`` holds the context vectors.
    """
    step = np.empty(source.shape[1], dtype=np.float32)
    lowest = np.float32(rate * 1e-4)
    state = _stream(seed, first)
    for i in range(count):
        state += _GOLDEN
        bits = _mix(state)
        edge = _below(bits, len(ends))
        u, v = np.int64(ends[edge]), np.int64(others[edge])
        if bits & np.uint64(1):
            u, v = v, u
        now = max(np.float32(rate - fall * i), lowest)
        state = _learn(source, u, target, v, accept, other, negatives, now, state, step)
