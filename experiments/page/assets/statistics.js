// Means, tests over seeds, and curves: the same rules as experiments/analysis/significance.py.
const statistics = (() => {
  const FEWEST = 3; // fewer values are not tested

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;
  const variance = (values) => {
    const middle = mean(values);
    return sum(values.map((value) => (value - middle) ** 2)) / (values.length - 1);
  };
  const sd = (values) => (values.length > 1 ? Math.sqrt(variance(values)) : 0);
  const allEqual = (values) => values.every((value) => value === values[0]);

  // Lanczos' approximation with g = 7 and nine terms: Press et al., Numerical Recipes, 6.1.
  function logGamma(x) {
    const terms = [
      0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
      -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6,
      1.5056327351493116e-7,
    ];
    const t = x + 6.5;
    const series = terms.reduce((total, term, i) => total + (i ? term / (x - 1 + i) : term), 0);
    return (x - 0.5) * Math.log(t) - t + Math.log(Math.sqrt(2 * Math.PI) * series);
  }

  // The continued fraction of the incomplete beta function, by Lentz: DLMF 8.17.22.
  function fraction(a, b, x) {
    const tiny = 1e-300;
    const safe = (value) => (Math.abs(value) < tiny ? tiny : value);
    let [c, d] = [1, 1 / safe(1 - ((a + b) * x) / (a + 1))];
    let result = d;
    for (let m = 1; m < 500; m += 1) {
      const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
      d = 1 / safe(1 + even * d);
      c = safe(1 + even / c);
      result *= d * c;
      const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
      d = 1 / safe(1 + odd * d);
      c = safe(1 + odd / c);
      result *= d * c;
      if (Math.abs(d * c - 1) < 1e-15) break;
    }
    return result;
  }

  // The regularised incomplete beta function I_x(a, b).
  function incompleteBeta(x, a, b) {
    if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
    const log = a * Math.log(x) + b * Math.log1p(-x) + logGamma(a + b) - logGamma(a) - logGamma(b);
    return x < (a + 1) / (a + b + 2)
      ? (Math.exp(log) * fraction(a, b, x)) / a
      : 1 - (Math.exp(log) * fraction(b, a, 1 - x)) / b;
  }

  // The two-sided p-value of t with df degrees of freedom.
  const twoSided = (t, df) => incompleteBeta(df / (df + t * t), df / 2, 0.5);

  // The t that |T| exceeds with probability p: bisection on log t.
  function quantile(p, df) {
    let [low, high] = [-10, 30];
    for (let i = 0; i < 60; i += 1) {
      const middle = (low + high) / 2;
      if (twoSided(Math.exp(middle), df) > p) low = middle;
      else high = middle;
    }
    return Math.exp((low + high) / 2);
  }

  function tested(middle, error, df, test, n) {
    const half = error ? quantile(0.05, df) * error : 0;
    const p = error ? twoSided(middle / error, df) : Number(middle === 0);
    return { mean: middle, low: middle - half, high: middle + half, p, test, n, error, df };
  }

  // One-sided p-values: a small one shows that a difference is above a bound, or below it.
  function above({ mean: middle, error, df }, bound) {
    if (!error) return Number(middle <= bound);
    const t = (middle - bound) / error;
    return t > 0 ? twoSided(t, df) / 2 : 1 - twoSided(t, df) / 2;
  }

  const below = ({ mean: middle, error, df }, bound) => above({ mean: -middle, error, df }, -bound);

  // Two one-sided t tests (TOST): a small p-value shows that a difference is within the margin.
  const equivalence = (found, margin) => Math.max(above(found, -margin), below(found, margin));

  // The difference of two groups, Maps of values by seed; null if either has too few values.
  function difference(ours, theirs) {
    const n = Math.min(ours.size, theirs.size);
    if (n < FEWEST) return null;
    const seeds = [...ours.keys()];
    const paired = ours.size === theirs.size && seeds.every((seed) => theirs.has(seed) && seed >= 0);
    if (paired) {
      const gaps = seeds.map((seed) => ours.get(seed) - theirs.get(seed));
      const error = allEqual(gaps) ? 0 : sd(gaps) / Math.sqrt(n);
      return tested(allEqual(gaps) ? gaps[0] : mean(gaps), error, n - 1, "paired t", n);
    }
    return welch([...ours.values()], [...theirs.values()], n);
  }

  function welch(a, b, n) {
    const gap = mean(a) - mean(b);
    if (allEqual(a) && allEqual(b)) return tested(gap, 0, 1, "Welch t", n);
    const [u, v] = [variance(a) / a.length, variance(b) / b.length];
    const df = (u + v) ** 2 / (u ** 2 / (a.length - 1) + v ** 2 / (b.length - 1));
    return tested(gap, Math.sqrt(u + v), df, "Welch t", n);
  }

  // Holm's correction: the adjusted p-values, in the order of the given ones.
  function holm(values) {
    const order = values.map((_, i) => i).sort((i, j) => values[i] - values[j]);
    const adjusted = new Array(values.length);
    let largest = 0;
    order.forEach((i, rank) => {
      largest = Math.max(largest, Math.min(1, values[i] * (values.length - rank)));
      adjusted[i] = largest;
    });
    return adjusted;
  }

  // An exponential mean of past values, corrected for its start as in Adam.
  function smoothed(values, weight) {
    if (!weight) return values;
    let [total, power] = [0, 1];
    return values.map((value) => {
      total = weight * total + (1 - weight) * value;
      power *= weight;
      return total / (1 - power);
    });
  }

  // The value of a curve at x, linear between its points; x lies within them.
  function valueAt(curve, x) {
    let [low, high] = [0, curve.x.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (curve.x[middle] <= x) low = middle;
      else high = middle;
    }
    const width = curve.x[high] - curve.x[low];
    const part = width > 0 ? (x - curve.x[low]) / width : 0;
    return curve.y[low] + part * (curve.y[high] - curve.y[low]);
  }

  // Mean and deviation of curves at the points that they share; each x uses the curves that have it.
  function bandAtPoints(curves) {
    const found = new Map();
    for (const curve of curves) {
      curve.key.forEach((key, i) => {
        if (!found.has(key)) found.set(key, { x: [], y: [] });
        found.get(key).x.push(curve.x[i]);
        found.get(key).y.push(curve.y[i]);
      });
    }
    const keys = [...found.keys()].sort((a, b) => a - b);
    const at = (part) => keys.map((key) => part(found.get(key)));
    return { x: at((p) => mean(p.x)), y: at((p) => mean(p.y)), sd: at((p) => sd(p.y)) };
  }

  // The same for curves with points of their own, such as seconds: where all curves have values.
  function bandBetween(curves, count = 200) {
    const first = Math.max(...curves.map((curve) => curve.x[0]));
    const last = Math.min(...curves.map((curve) => curve.x[curve.x.length - 1]));
    if (!(last > first)) return { x: [], y: [], sd: [] };
    const x = Array.from({ length: count }, (_, i) => first + ((last - first) * i) / (count - 1));
    const at = x.map((point) => curves.map((curve) => valueAt(curve, point)));
    return { x, y: at.map(mean), sd: at.map(sd) };
  }

  return {
    FEWEST, mean, sd, twoSided, quantile, difference, equivalence, holm, smoothed, bandAtPoints,
    bandBetween,
  };
})();
