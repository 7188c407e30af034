/** From samples to what is printed and kept: medians, ratios to the baseline, failures. */
import type { MetricName, Sample } from './rounds.ts';
import { median, pairedRatio, type Ratio, spread } from './stats.ts';
import { type Column, formatNumber, renderTable } from './table.ts';

export interface ReportLayout {
  /** Whose figures the others are divided by. */
  readonly baseline: string;
  /** By competitor, where it is another one's. */
  readonly baselines?: Readonly<Record<string, string>>;
  readonly ratios: readonly { readonly metric: MetricName; readonly title: string }[];
  readonly values: readonly {
    readonly metric: MetricName;
    readonly title: string;
    readonly scale?: number;
  }[];
}

export interface SummaryRow {
  readonly job: string;
  readonly competitor: string;
  readonly roundsGood: number;
  readonly failures: readonly string[];
  readonly medians: Readonly<Partial<Record<MetricName, number>>>;
  /** To the baseline; null for the baseline itself and where either side has no figure. */
  readonly ratios: Readonly<Partial<Record<MetricName, Ratio | null>>>;
  /** Of IOPS over the rounds, relative to the median. */
  readonly iopsSpread: number;
}

/** One row for each job and competitor, in the order in which they first ran. */
export function summarize(samples: readonly Sample[], layout: ReportLayout): SummaryRow[] {
  const jobs = [...new Set(samples.map((sample) => sample.job))];
  const competitors = [...new Set(samples.filter(({ round }) => round === 0).map((s) => s.competitor))];
  const rows: SummaryRow[] = [];
  for (const job of jobs) {
    for (const competitor of competitors) {
      const mine = samples.filter((sample) => sample.job === job && sample.competitor === competitor);
      if (mine.length === 0) continue;
      const byRound = (name: string, metric: MetricName): (number | undefined)[] => {
        const values: (number | undefined)[] = [];
        for (const sample of samples) {
          if (sample.job === job && sample.competitor === name)
            values[sample.round] = sample.metrics?.[metric];
        }
        return values;
      };
      const good = (metric: MetricName): number[] =>
        byRound(competitor, metric).filter((value) => value !== undefined);
      const medians: Partial<Record<MetricName, number>> = {};
      for (const { metric } of layout.values) {
        const values = good(metric);
        if (values.length > 0) medians[metric] = median(values);
      }
      const ratios: Partial<Record<MetricName, Ratio | null>> = {};
      const baseline = baselineOf(competitor, layout);
      for (const { metric } of layout.ratios) {
        ratios[metric] =
          competitor === baseline
            ? null
            : pairedRatio(byRound(competitor, metric), byRound(baseline, metric));
      }
      rows.push({
        job,
        competitor,
        roundsGood: good('iops').length,
        failures: mine.flatMap(({ failure }) => (failure === null ? [] : [failure])),
        medians,
        ratios,
        iopsSpread: spread(good('iops')),
      });
    }
  }
  return rows;
}

function baselineOf(competitor: string, layout: ReportLayout): string {
  return layout.baselines?.[competitor] ?? layout.baseline;
}

/** The table, ratios first, and below it why cells failed. */
export function renderSummary(rows: readonly SummaryRow[], layout: ReportLayout): string {
  const columns: Column[] = [
    { title: 'job', align: 'left' },
    { title: 'device', align: 'left' },
    ...layout.ratios.map(({ title }): Column => ({ title, align: 'right' })),
    ...layout.values.map(({ title }): Column => ({ title, align: 'right' })),
    { title: 'spread', align: 'right' },
  ];
  const lines: string[][] = [];
  const failures: string[] = [];
  let previous = '';
  for (const row of rows) {
    if (previous !== '' && previous !== row.job) lines.push([]);
    lines.push([
      row.job === previous ? '' : row.job,
      row.competitor,
      ...layout.ratios.map(({ metric }) =>
        row.roundsGood === 0
          ? 'failed'
          : row.competitor === baselineOf(row.competitor, layout)
            ? '1'
            : formatRatio(row.ratios[metric] ?? null),
      ),
      ...layout.values.map(({ metric, scale }) => {
        const value = row.medians[metric];
        if (row.roundsGood === 0) return 'failed';
        return formatNumber(value === undefined ? undefined : value * (scale ?? 1));
      }),
      row.roundsGood === 0 ? 'failed' : `${Math.round(row.iopsSpread * 100)} %`,
    ]);
    previous = row.job;
    for (const failure of row.failures)
      failures.push(`FAILED: ${row.job}, ${row.competitor}: ${failure.split('\n').slice(0, 3).join(' | ')}`);
  }
  const table = renderTable(columns, lines);
  return failures.length === 0 ? table : `${table}\n\n${failures.join('\n')}`;
}

function formatRatio(ratio: Ratio | null): string {
  if (ratio === null) return '-';
  const text = `${ratio.value.toFixed(2)}x`;
  return ratio.resolved ? text : `unresolved ${text}`;
}
