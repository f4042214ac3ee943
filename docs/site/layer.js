// One channel of a batch-norm layer at work: the arithmetic, without the page. The tests compare it with PyTorch.
"use strict";

const EPS = 1e-5;
const MOMENTUM = 0.1;
const WEIGHT = 1.5;
const BIAS = 0.5;
const POSITIONS = 4;
// In turn, every rank gets both classes, with 1, 2 or 4 ranks.
const LABELS = [0, 1, 1, 0, 1, 0, 0, 1];

// Two classes of samples with different means. The numbers are fixed, so that two readers see the same.
function samples() {
  let state = 7;
  const uniform = () => {
    state = (state * 16807) % 2147483647;
    return state / 2147483647;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return LABELS.map((label, index) => {
    const own = (label ? 1.6 : -0.4) + 0.3 * normal();
    return { index, label, values: Array.from({ length: POSITIONS }, () => own + 0.5 * normal()) };
  });
}

// Deal the samples to ranks, as many to each: `skew` per cent of them sorted by class, the others in turn.
function deal(ranks, skew) {
  const all = samples();
  const count = Math.round((skew / 100) * all.length);
  const sorted = all.slice(0, count).sort((a, b) => a.label - b.label || a.index - b.index);
  const shares = Array.from({ length: ranks }, () => []);
  sorted.forEach((sample, place) => shares[Math.floor((place * ranks) / count)].push(sample));
  for (const sample of all.slice(count)) {
    shares.reduce((least, share) => (share.length < least.length ? share : least)).push(sample);
  }
  return shares;
}

// The groups of values that share a statistic, as lists of [rank, sample, position].
function groups(shares, norm) {
  const places = shares.map((share, rank) =>
    share.flatMap((sample, place) => sample.values.map((_, position) => [rank, place, position])));
  if (norm === "bn") return places;
  if (norm === "sync_bn") return [places.flat()];
  return shares.flatMap((share, rank) =>
    share.map((sample, place) => sample.values.map((_, position) => [rank, place, position])));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Everything that the figure shows, for a norm, a number of ranks and a skew.
function layer(norm, ranks, skew) {
  const shares = deal(ranks, skew);
  const x = shares.map((share) => share.map((sample) => sample.values));
  const at = (tensor, [rank, sample, position]) => tensor[rank][sample][position];
  const like = () => x.map((share) => share.map((sample) => sample.map(() => 0)));
  const [hat, y, gradient] = [like(), like(), like()];
  const paths = [like(), like(), like()];
  const upstream = x.map((share, rank) => share.map((sample, place) =>
    sample.map((_, position) => Math.sin(1 + 3 * shares[rank][place].index + position))));
  const statistics = groups(shares, norm).map((places) => {
    const values = places.map((place) => at(x, place));
    const mu = mean(values);
    const variance = mean(values.map((value) => (value - mu) ** 2));
    const inverse = 1 / Math.sqrt(variance + EPS);
    for (const [rank, sample, position] of places) {
      hat[rank][sample][position] = (x[rank][sample][position] - mu) * inverse;
      y[rank][sample][position] = WEIGHT * hat[rank][sample][position] + BIAS;
    }
    const g = places.map((place) => at(upstream, place));
    const meanG = mean(g);
    const meanGHat = mean(places.map((place, index) => g[index] * at(hat, place)));
    places.forEach(([rank, sample, position], index) => {
      const parts = [g[index], -meanG, -at(hat, [rank, sample, position]) * meanGHat].map((part) => WEIGHT * inverse * part);
      parts.forEach((part, path) => { paths[path][rank][sample][position] = part; });
      gradient[rank][sample][position] = parts[0] + parts[1] + parts[2];
    });
    const n = values.length;
    return { places, n, mean: mu, variance, unbiased: n > 1 ? (variance * n) / (n - 1) : NaN };
  });
  // Norms by sample have no running statistics. Each rank keeps its own, and evaluates with rank 0's.
  const running = norm === "gn" ? [] : statistics.map((one) => ({
    mean: MOMENTUM * one.mean,
    variance: 1 - MOMENTUM + MOMENTUM * one.unbiased,
  }));
  const used = running[0];
  const evaluated = norm === "gn" ? y : x.map((share) => share.map((sample) => sample.map((value) =>
    (WEIGHT * (value - used.mean)) / Math.sqrt(used.variance + EPS) + BIAS)));
  return { shares, x, hat, y, upstream, gradient, paths, statistics, running, evaluated };
}

if (typeof module !== "undefined") module.exports = { layer, EPS, MOMENTUM, WEIGHT, BIAS };
