/** What a result's reader must know about the machine that it comes from. */
import { readFileSync } from 'node:fs';
import * as os from 'node:os';
import { runToEnd } from './processes.ts';

export interface Environment {
  readonly cpu: string;
  readonly cpuCount: number;
  readonly memoryBytes: number;
  readonly kernel: string;
  readonly node: string;
  readonly programs: Readonly<Record<string, string>>;
  /** One-minute load average before the first cell: others' work makes figures noisy. */
  readonly loadBefore: number;
}

const VERSIONS: Readonly<Record<string, readonly string[]>> = {
  fio: ['fio', '--version'],
  nbdkit: ['nbdkit', '--version'],
  'nbd-client': ['nbd-client', '-V'],
  'qemu-nbd': ['qemu-nbd', '--version'],
};

export async function describeEnvironment(): Promise<Environment> {
  const programs: Record<string, string> = {};
  for (const [name, command] of Object.entries(VERSIONS)) {
    programs[name] = await runToEnd(command).then(
      (text) => text.split('\n')[0]!.trim(),
      () => 'missing',
    );
  }
  return {
    cpu: os.cpus()[0]?.model ?? 'unknown',
    cpuCount: os.cpus().length,
    memoryBytes: os.totalmem(),
    kernel: os.release(),
    node: process.version,
    programs,
    loadBefore: loadAverage(),
  };
}

/** Of the last minute. */
export function loadAverage(): number {
  return Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[0]);
}
