/** What a suite is given and gives back. */

import type { Cleanup } from './processes.ts';
import type { ReportLayout } from './report.ts';
import type { Sample } from './rounds.ts';

export interface SuiteOptions {
  readonly quick: boolean;
  /** Null: the suite's own number. */
  readonly rounds: number | null;
  /** Null: the suite's own server. */
  readonly server: string | null;
  /** Only jobs whose name contains it. */
  readonly only: string | null;
  /** By name, of those that the suite has; null: its own choice. */
  readonly sections: readonly string[] | null;
  readonly devices: readonly string[] | null;
  /** See RoundsOptions. */
  readonly patienceMs: number;
  readonly cleanup: Cleanup;
  readonly signal: AbortSignal;
  readonly onProgress: (message: string) => void;
  readonly onSample: (sample: Sample, done: number, total: number) => void;
}

export interface SuiteResult {
  /** One table each. */
  readonly sections: readonly {
    readonly title: string;
    readonly layout: ReportLayout;
    readonly samples: readonly Sample[];
  }[];
  /** Facts about this run, printed above the tables: kernel, accelerator, server. */
  readonly facts: readonly string[];
}

export type Suite = (options: SuiteOptions) => Promise<SuiteResult>;
