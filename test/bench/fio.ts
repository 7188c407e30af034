/** fio: the jobs that are measured, its command line, and what it reports. */
import { BlockwireError } from '@blockwire/shared/errors.ts';

export interface Job {
  /** As the table names it: `4k read qd32`. */
  readonly name: string;
  readonly mode: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockBytes: number;
  readonly depth: number;
  /** fio jobs, each of them with its own depth. */
  readonly jobs: number;
}

const KIB = 1024;

/** Names a job. @param order `random` keeps the kernel from merging neighbours, so that an I/O stays one request */
export function job(
  direction: 'read' | 'write',
  blockKib: number,
  depth: number,
  options: { jobs?: number; order?: 'random' | 'sequential' } = {},
): Job {
  const { jobs = 1, order = 'random' } = options;
  const several = jobs === 1 ? '' : `${jobs}x`;
  return {
    name: `${blockKib}k ${direction} qd${several}${depth}${order === 'sequential' ? ' seq' : ''}`,
    mode: order === 'random' ? `rand${direction}` : direction,
    blockBytes: blockKib * KIB,
    depth,
    jobs,
  };
}

export interface FioRun {
  readonly job: Job;
  /** What is read and written: a block device, or an NBD export. */
  readonly target: { readonly device: string } | { readonly uri: string };
  readonly rampS: number;
  readonly runtimeS: number;
  readonly outputPath: string;
}

/** fio's arguments. */
export function fioArguments(run: FioRun): string[] {
  const { job: wanted, target, rampS, runtimeS, outputPath } = run;
  const where =
    'device' in target
      ? ['--ioengine=libaio', '--direct=1', `--filename=${target.device}`]
      : ['--ioengine=nbd', `--uri=${target.uri}`];
  return [
    '--name=cell',
    ...where,
    `--rw=${wanted.mode}`,
    `--bs=${wanted.blockBytes}`,
    `--iodepth=${wanted.depth}`,
    `--numjobs=${wanted.jobs}`,
    // One process whatever the number of jobs, so that its CPU time is in one place.
    '--thread',
    '--group_reporting',
    '--time_based',
    `--ramp_time=${rampS}`,
    `--runtime=${runtimeS}`,
    '--norandommap',
    '--randrepeat=0',
    '--output-format=json',
    `--output=${outputPath}`,
  ];
}

export interface FioResult {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

/** Reads fio's JSON output. Throws BW_IO when fio reports an error, did nothing, or printed something else. */
export function parseFio(text: string, mode: Job['mode']): FioResult {
  // fio prints notes before the JSON object.
  const start = text.indexOf('{');
  let document: unknown;
  try {
    document = JSON.parse(text.slice(Math.max(start, 0)));
  } catch (cause) {
    throw new BlockwireError('BW_IO', `fio printed no JSON: ${text.slice(0, 400).trim()}`, { cause });
  }
  const error = numberAt(document, ['jobs', 0, 'error']);
  if (error !== 0) throw new BlockwireError('BW_IO', `fio reports error ${error}`);
  const direction = mode.endsWith('read') ? 'read' : 'write';
  const side = ['jobs', 0, direction] as const;
  const iops = numberAt(document, [...side, 'iops']);
  if (iops <= 0) throw new BlockwireError('BW_IO', 'fio completed no I/O');
  const percentile = (key: string): number =>
    numberAt(document, [...side, 'clat_ns', 'percentile', key]) / 1000;
  return {
    iops,
    bytesPerSecond: numberAt(document, [...side, 'bw_bytes']),
    p50Us: percentile('50.000000'),
    p99Us: percentile('99.000000'),
  };
}

/** The number at a path of keys and indices. */
function numberAt(document: unknown, path: readonly (string | number)[]): number {
  let value: unknown = document;
  for (const key of path) {
    value = typeof value === 'object' && value !== null ? Reflect.get(value, key) : undefined;
  }
  if (typeof value !== 'number')
    throw new BlockwireError('BW_IO', `fio's output has no number at ${path.join('.')}`);
  return value;
}
