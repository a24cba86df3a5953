// What the tests of lines come to: the same rules as experiments/analysis/verdicts.py.
const verdicts = (() => {
  const { equivalence, holm } = statistics;
  const ALPHA = 0.05;

  // A result for each difference, as one family; null for null. `better` is "higher" or "lower" for
  // what has a quality; without a margin, equivalence is not tested.
  function outcomes(differences, better, margin) {
    const tested = differences.filter(Boolean);
    const corrected = holm(tested.map(({ p }) => p));
    const same = margin ? tested.map((found) => equivalence(found, margin)) : [];
    const sameCorrected = holm(same);
    const found = new Map(tested.map((difference, i) => [difference, judged({
      difference, family: tested.length, holm: corrected[i], margin: margin ?? null,
      equivalence: same[i] ?? null, equivalenceHolm: sameCorrected[i] ?? null,
    }, better)]));
    return differences.map((difference) => found.get(difference) ?? null);
  }

  function judged(outcome, better) {
    const isWithin = outcome.equivalenceHolm !== null && outcome.equivalenceHolm < ALPHA;
    return { ...outcome, isWithin, verdict: verdictOf(outcome, isWithin, better) };
  }

  function verdictOf({ difference, holm: p }, isWithin, better) {
    if (p >= ALPHA) return isWithin ? "equivalent" : "undecided";
    const side = difference.mean > 0 ? "higher" : "lower";
    if (!better) return side;
    return side === better ? "better" : "worse";
  }

  function words({ verdict, isWithin, margin }) {
    if (verdict === "equivalent") return `equivalent within \u00b1${margin}`;
    return isWithin && verdict !== "undecided" ? `${verdict}, but by less than ${margin}` : verdict;
  }

  const pWords = (p) => (p < 0.001 ? "< 0.001" : `= ${p.toPrecision(2)}`);

  // Both p-values, corrected.
  function figures({ holm: p, equivalenceHolm }) {
    return `p ${pWords(p)}${equivalenceHolm === null ? "" : `, TOST p ${pWords(equivalenceHolm)}`}`;
  }

  return { outcomes, words, figures, pWords };
})();
