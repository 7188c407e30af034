/**
 * `blockwire agent orphans [--remove]`: Blockwire devices of this host that nobody serves and no attachment knows, left by
 * agents that never came back. Whatever another ublk server made, a process serves, or an attachment has is not touched.
 */
import { parseArgs } from 'node:util';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import { Type } from 'typebox';
import { Value } from 'typebox/value';
import { type Leftover, listBlockwireDevices, removeLeftover } from './takeover.ts';
import { startRecovery } from './ublk/control.ts';
import { agentDigest } from './ublk/mark.ts';
import { UblkState } from './ublk/uapi.ts';

const USAGE = `blockwire agent orphans: devices of this host that no agent serves and no attachment knows
  --remove     remove them; what still waits for them gets an I/O error
  --rest URL   the control plane (default BLOCKWIRE_REST or http://127.0.0.1:7400)
  --json       one JSON document`;
const REQUEST_MS_MAX = 10_000;

const Attachments = Type.Array(Type.Object({ id: Type.String(), agent: Type.String() }));

interface Row {
  readonly device: string;
  readonly volume: string;
  readonly attachment: string;
  readonly state: 'served' | 'attached' | 'orphan' | 'removed';
  readonly detail: string;
}

async function knownAttachments(rest: string): Promise<ReadonlyMap<string, string>> {
  let answer: unknown;
  try {
    const url = new URL('/v1/attachments', rest);
    answer = await (await fetch(url, { signal: AbortSignal.timeout(REQUEST_MS_MAX) })).json();
  } catch (error) {
    throw new BlockwireError(
      'BW_PEER_UNREACHABLE',
      `whether a device is an orphan only the control plane knows, and ${rest} does not answer (--rest URL)`,
      { cause: error },
    );
  }
  if (!Value.Check(Attachments, answer))
    throw new BlockwireError('BW_PROTOCOL', `${rest} is not a control plane of this version`);
  return new Map(answer.map(({ id, agent }) => [id, agent]));
}

async function isServed({ info }: Leftover): Promise<boolean> {
  // One that was never started is with the agent that makes it for a moment only.
  if (info.state === UblkState.LIVE) return true;
  if (info.state === UblkState.DEAD) return isAlive(info.serverPid);
  try {
    await startRecovery(info.id);
    return false;
  } catch (error) {
    if (error instanceof BlockwireError && error.code === 'BW_DEVICE_BUSY') return true;
    throw error;
  }
}

function isAlive(pid: number): boolean {
  if (pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function examine(device: Leftover, known: ReadonlyMap<string, string>, remove: boolean): Promise<Row> {
  const row = { device: device.path, volume: device.volumeId, attachment: device.attachmentId };
  const agent = known.get(device.attachmentId);
  if (await isServed(device))
    return { ...row, state: 'served', detail: `by process ${device.info.serverPid}` };
  // The same id under another agent's name would be another cluster's.
  if (agent !== undefined && agentDigest(agent) === device.agentDigest)
    return { ...row, state: 'attached', detail: `waits for agent ${agent}` };
  if (!remove) return { ...row, state: 'orphan', detail: 'remove it with --remove' };
  await removeLeftover(device, true);
  return { ...row, state: 'removed', detail: '' };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      remove: { type: 'boolean', default: false },
      rest: { type: 'string', default: process.env.BLOCKWIRE_REST || 'http://127.0.0.1:7400' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  const devices = await listBlockwireDevices();
  const known = devices.length === 0 ? new Map<string, string>() : await knownAttachments(values.rest);
  const rows: Row[] = [];
  for (const device of devices) rows.push(await examine(device, known, values.remove));
  if (values.json) {
    process.stdout.write(`${JSON.stringify(rows)}\n`);
    return;
  }
  if (rows.length === 0) process.stdout.write('no Blockwire device on this host\n');
  for (const { device, state, volume, attachment, detail } of rows)
    process.stdout.write(`${device}  ${state.padEnd(8)}  ${volume}  ${attachment}  ${detail}\n`);
}

try {
  await main();
} catch (thrown) {
  const { code, message } = toBlockwireError(thrown, 'BW_INVALID_ARGUMENT');
  process.stderr.write(`blockwire agent orphans: ${code}: ${message}\n`);
  process.exitCode = code === 'BW_INVALID_ARGUMENT' ? 2 : code === 'BW_PEER_UNREACHABLE' ? 3 : 1;
}
