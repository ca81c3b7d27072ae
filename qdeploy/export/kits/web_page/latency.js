// Milliseconds of the latest images, phase by phase: percentiles and a small histogram each.

const KEPT = 1000;
const BARS = 24;

export const PHASES = ["decode", "preprocess", "infer"];

export class Latency {
  constructor() {
    this.samples = Object.fromEntries(PHASES.map((phase) => [phase, []]));
  }

  add(milliseconds) {
    for (const [phase, ms] of Object.entries(milliseconds)) {
      this.samples[phase].push(ms);
      if (this.samples[phase].length > KEPT) this.samples[phase].shift();
    }
  }

  /** Return count, p50, p90, and the shares of equal steps from 0 to `end`; undefined before the first sample. */
  summary(phase) {
    const sorted = [...this.samples[phase]].sort((a, b) => a - b);
    if (!sorted.length) return undefined;
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
    const end = Math.max(0.1, at(0.98) * 1.1);
    const bars = new Array(BARS).fill(0);
    for (const ms of sorted) bars[Math.min(BARS - 1, Math.floor((ms / end) * BARS))] += 1 / sorted.length;
    return { count: sorted.length, p50: at(0.5), p90: at(0.9), end, bars };
  }
}

export const milliseconds = (ms) => (ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0));
