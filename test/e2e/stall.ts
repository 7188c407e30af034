/** How long the longest I/O takes while something happens to a replica. */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import type { World } from './world.ts';

const RUNNING_MS = 3000;

const Latency = Type.Object({ total_ios: Type.Integer(), lat_ns: Type.Object({ max: Type.Number() }) });
const FioReport = Type.Object({
  jobs: Type.Array(Type.Object({ error: Type.Integer(), read: Latency, write: Latency })),
});

export interface Stall {
  readonly readMs: number;
  readonly writeMs: number;
  readonly ios: number;
}

/**
 * Reads and writes 4 KiB at a time with two in flight, for so long; `happen` is called when that goes on. Throws BW_IO when an
 * I/O ended with an error.
 */
export async function longestStall(
  world: World,
  device: string,
  { seconds, happen }: { readonly seconds: number; readonly happen: () => Promise<void> },
): Promise<Stall> {
  const fio = world.machine.start(
    `fio --name=stall --filename=${device} --rw=randrw --bs=4k --size=16m --direct=1 --ioengine=libaio --iodepth=2 ` +
      `--time_based --runtime=${seconds} --rate_iops=20,20 --output-format=json`,
  );
  await sleep(RUNNING_MS);
  await happen();
  const { exitCode, output } = await fio.done;
  const report: unknown = JSON.parse(output.slice(output.indexOf('{')));
  if (!Value.Check(FioReport, report)) throw new BlockwireError('BW_PROTOCOL', `fio said ${output}`);
  const { error, read, write } = (report as Static<typeof FioReport>).jobs[0]!;
  if (exitCode !== 0 || error !== 0) {
    throw new BlockwireError('BW_IO', `fio ended with ${exitCode}, error ${error}\n${world.describe()}`);
  }
  const milliseconds = ({ lat_ns }: Static<typeof Latency>): number => Math.round(lat_ns.max / 1e6);
  return { readMs: milliseconds(read), writeMs: milliseconds(write), ios: read.total_ios + write.total_ios };
}
