/**
 * One attached volume on the main thread: its ublk device, its queue workers, and the conversation with the control
 * plane about lost replicas.
 *
 *   create:   ADD_DEV → SET_PARAMS → open /dev/ublkcN → workers fetch all tags and connect → START_DEV
 *   recover:  START_USER_RECOVERY → open /dev/ublkcN → workers fetch all tags → END_USER_RECOVERY → they connect
 *   release:  QUIESCE_DEV → requests in flight complete → workers end → close /dev/ublkcN; the device stays
 *   detach:   sync → TRY_STOP_DEV (or STOP_DEV) → workers end → close /dev/ublkcN → DEL_DEV
 *
 * This process never reads or writes its own device: a thread that waits for the device cannot be killed, and while it
 * lives the kernel keeps /dev/ublkcN open and gives the device to nobody else.
 */
import { execFile } from 'node:child_process';
import { lookup } from 'node:dns/promises';
import { closeSync, constants, existsSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseHostPort } from '@blockwire/native/sockets.ts';
import type { Membership, ReplicaMember } from '@blockwire/proto/control/types.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { COUNTERS, openCounters } from './datapath/counters.ts';
import { datapathFeatures } from './datapath/ladder.ts';
import type { Datapath, DatapathLadder, ReplicaTarget } from './datapath/messages.ts';
import { REPLICAS_COUNT_MAX } from './datapath/mirror.ts';
import { type IoState, IoWatch } from './io-watch.ts';
import { Queues } from './queues.ts';
import {
  addDevice,
  deleteDevice,
  endRecovery,
  getParams,
  quiesceDevice,
  setParams,
  startDevice,
  startRecovery,
  stopDevice,
  tryStopDevice,
  ublkFeatures,
  updateSize,
} from './ublk/control.ts';
import { encodeMark } from './ublk/mark.ts';
import { type DeviceInfo, UblkFeature } from './ublk/uapi.ts';

const CONNECT_MS_MAX = 15_000;
const START_MS_MAX = 60_000;
const NODE_APPEARS_MS_MAX = 10_000;
const REPORT_RETRY_MS = 500;
const SYNC_MS_MAX = 20_000;
/** Within the time that the end of the process has for each of its parts. */
const RELEASE_MS_MAX = 6_000;
const QUIESCE_MS = 200;
const RECOVERY_POLL_MS = 5;
/** Discards reach whole blocks of the nodes' checksums; also the physical block. */
const BLOCK_BYTES = 4096;
const IN_SYNC = 'REPLICA_STATE_IN_SYNC';

export interface DeviceOptions {
  readonly log: Logger;
  readonly agentId: string;
  readonly attachmentId: string;
  readonly volumeName: string;
  readonly membership: Membership;
  readonly sizeBytes: number;
  readonly datapath: Datapath;
  /** `chooseLadder` of the host's probe. */
  readonly ladder: DatapathLadder;
  /** Each has a worker; the kernel allows as many as there are CPUs. */
  readonly queueCount: number;
  /** Requests in flight of one queue. */
  readonly queueDepth: number;
  readonly ioSizeBytesMax: number;
  /** Logical block: 512 or 4096. */
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  readonly replicaTimeoutMs: number;
  /** I/O fails when no in-sync replica has answered for so long; zero: it waits. */
  readonly ioTimeoutMs: number;
  /** A queue worker failed: only a new process can serve the device again. */
  readonly onFatal: (error: Error) => void;
  /** Tells the control plane that a replica is lost; resolves with the membership that follows from it. */
  readonly reportLost: (report: {
    membership: Membership;
    nodeId: string;
    reason: string;
  }) => Promise<Membership>;
}

export interface ReplicaStatus {
  readonly nodeId: string;
  readonly inSync: boolean;
  readonly connected: boolean;
  /** Why it is not connected. */
  readonly reason: string;
}

export class BlockDevice {
  readonly #options: DeviceOptions;
  readonly #targets: readonly ReplicaTarget[];
  readonly #wasUp: (boolean | null)[];
  readonly #io: IoWatch;
  /** By replica: the report under way; several queues lose the same replica. */
  readonly #reports = new Map<number, Promise<void>>();
  #linkChanged = Promise.withResolvers<void>();
  #membership: Membership;
  #sizeBytes: number;
  #deviceId = -1;
  #charFd = -1;
  #queues: Queues | null = null;
  #live = false;
  #closing = false;

  private constructor(options: DeviceOptions, targets: readonly ReplicaTarget[]) {
    this.#options = options;
    this.#membership = options.membership;
    this.#sizeBytes = options.sizeBytes;
    this.#targets = targets;
    this.#wasUp = targets.map(() => null);
    this.#io = new IoWatch({
      timeoutMs: options.ioTimeoutMs,
      after: (milliseconds, step) => {
        const timer = setTimeout(step, milliseconds);
        return () => clearTimeout(timer);
      },
      onChange: (state, before) => this.#ioChanged(state, before),
    });
  }

  /**
   * Makes the device. Throws BW_NO_IN_SYNC_REPLICA if no in-sync replica answers, BW_KERNEL if the kernel refuses;
   * nothing is left behind then.
   */
  static async create(options: DeviceOptions): Promise<BlockDevice> {
    const device = new BlockDevice(options, await resolveTargets(options.membership));
    try {
      await device.#start();
      return device;
    } catch (error) {
      await device.#discard();
      throw error;
    }
  }

  /**
   * Serves a device that another process of this agent made and left. Returns once it lives, connected or not: its I/O
   * waits meanwhile. Its form (queues, depth, sizes of I/O and of blocks) is the device's own, not that of the options.
   * On failure it is as it was. Throws BW_DEVICE_BUSY while another process still has it, BW_KERNEL, BW_TIMEOUT.
   */
  static async recover(options: DeviceOptions, info: DeviceInfo): Promise<BlockDevice> {
    await startRecovery(info.id);
    const device = new BlockDevice(options, await resolveTargets(options.membership));
    try {
      await device.#takeOver(info);
      return device;
    } catch (error) {
      await device.#letGo();
      throw error;
    }
  }

  get attachmentId(): string {
    return this.#options.attachmentId;
  }

  get volumeId(): string {
    return this.#membership.volumeId;
  }

  get volumeName(): string {
    return this.#options.volumeName;
  }

  get path(): string {
    return `/dev/ublkb${this.#deviceId}`;
  }

  get datapath(): Datapath {
    return this.#options.datapath;
  }

  get membership(): Membership {
    return this.#membership;
  }

  get ioState(): IoState {
    return this.#io.state;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The counters of all queues together, see COUNTERS. */
  get counters(): Float64Array {
    const sums = new Float64Array(COUNTERS.length);
    for (const memory of this.queueMemories) {
      for (const [index, value] of openCounters(memory).entries()) sums[index] = sums[index]! + value;
    }
    return sums;
  }

  /** By queue: its counters and latency histograms (datapath/counters.ts). */
  get queueMemories(): readonly SharedArrayBuffer[] {
    return this.#queues?.memories ?? [];
  }

  get replicas(): readonly ReplicaStatus[] {
    return this.#targets.map(({ nodeId }, replica) => ({
      nodeId,
      inSync: (this.#inSyncMask(this.#membership) & (1 << replica)) !== 0,
      connected: this.#queues?.link(replica).up ?? false,
      reason: this.#queues?.link(replica).reason ?? '',
    }));
  }

  /** Resolves when every queue reaches an in-sync replica. */
  async served(): Promise<void> {
    while (this.#queues?.serves(this.#inSyncMask(this.#membership)) !== true) {
      if (this.#closing) throw new BlockwireError('BW_SHUTTING_DOWN', 'the device is being given up');
      await this.#linkChanged.promise;
    }
  }

  /** The volume is so large now. The device never shrinks. */
  async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes <= this.#sizeBytes) return;
    await updateSize(this.#deviceId, sizeBytes);
    this.#options.log.info({ volume: this.volumeId, device: this.path, sizeBytes }, 'resized');
    this.#sizeBytes = sizeBytes;
  }

  /**
   * Lets the device go for another process: new requests are held back, those in flight complete, /dev/ublkcN is closed.
   * What does not complete in time (no replica answers) the kernel gives out again.
   */
  async release(): Promise<void> {
    const deadlineMs = performance.now() + RELEASE_MS_MAX;
    try {
      await this.#quiesce(deadlineMs);
      this.#queues?.post({ type: 'release' });
      const leftMs = Math.max(1, deadlineMs - performance.now());
      await this.#within(
        this.#queues?.ended ?? Promise.resolve(),
        leftMs,
        'requests in flight did not complete',
      );
    } catch (error) {
      this.#options.log.warn({ device: this.path, err: error }, 'let go with requests in flight');
    }
    await this.#letGo();
  }

  /**
   * Removes the device. Without `force`, BW_DEVICE_BUSY while it is open. With it, requests that still wait for a
   * replica fail with an I/O error.
   */
  async detach(force: boolean, syncMsMax = SYNC_MS_MAX): Promise<void> {
    if (force) {
      this.#closing = true;
      this.#queues?.post({ type: 'fail' });
      await stopDevice(this.#deviceId);
    } else {
      await this.#sync(syncMsMax);
      await this.#stopUnlessOpen();
    }
    await this.#discard();
  }

  async #start(): Promise<void> {
    const { datapath, ladder, queueDepth, ioSizeBytesMax, sizeBytes } = this.#options;
    const offered = await ublkFeatures();
    const recovery = UblkFeature.USER_RECOVERY | UblkFeature.USER_RECOVERY_REISSUE;
    const wanted =
      datapathFeatures(datapath, ladder) |
      recovery |
      UblkFeature.UPDATE_SIZE |
      UblkFeature.QUIESCE |
      UblkFeature.SAFE_STOP_DEV;
    const { agentId, attachmentId, queueCount, blockSizeBytes, readOnly } = this.#options;
    const info = await addDevice({
      id: -1,
      queueCount,
      queueDepth,
      ioSizeBytesMax,
      features: (wanted & offered) | UblkFeature.CMD_IOCTL_ENCODE,
      marks: encodeMark({ agentId, attachmentId, volumeId: this.volumeId, datapath }),
    });
    this.#deviceId = info.id;
    await setParams(info.id, {
      sizeBytes,
      blockSizeBytes,
      ioSizeBytesMax: info.ioSizeBytesMax,
      discardGranularityBytes: BLOCK_BYTES,
      readOnly,
    });
    const queues = await this.#startQueues(info, info.ioSizeBytesMax);
    await this.#connected(queues);
    await this.#within(startDevice(info.id), START_MS_MAX, 'the kernel did not start the device');
    await appears(this.path);
    this.#begin();
  }

  async #takeOver(info: DeviceInfo): Promise<void> {
    this.#deviceId = info.id;
    const params = await getParams(info.id);
    this.#sizeBytes = params.sizeBytes;
    await this.#startQueues(info, params.ioSizeBytesMax);
    await this.#within(endRecovery(info.id), START_MS_MAX, 'the kernel did not take the device up again');
    this.#begin();
    await this.resize(this.#options.sizeBytes);
  }

  /** The device lives: from now on it counts whether its I/O is served. */
  #begin(): void {
    this.#live = true;
    this.#watchIo();
  }

  async #startQueues(info: DeviceInfo, ioSizeBytesMax: number): Promise<Queues> {
    const charPath = `/dev/ublkc${info.id}`;
    await appears(charPath);
    this.#charFd = openSync(charPath, constants.O_RDWR);
    const { log, datapath, ladder, replicaTimeoutMs } = this.#options;
    const queues = new Queues({
      name: `ublk-${info.id}`,
      charFd: this.#charFd,
      queueCount: info.queueCount,
      queueDepth: info.queueDepth,
      ioSizeBytesMax,
      sizeBytes: this.#sizeBytes,
      datapath,
      ladder,
      replicas: this.#targets,
      inSync: this.#inSyncMask(this.#membership),
      replicaTimeoutMs,
      onLost: (replica, reason) => this.#lost(replica, reason),
      onLinks: (replica) => this.#linked(replica),
      onFailure: (error) => {
        log.error({ err: error, device: this.path }, 'a queue worker failed');
        this.#options.onFatal(error);
      },
    });
    this.#queues = queues;
    await this.#within(queues.fetched, START_MS_MAX, 'the queues did not fetch their requests');
    return queues;
  }

  #linked(replica: number): void {
    const { seen, up, reason } = this.#queues!.link(replica);
    if (seen && up !== this.#wasUp[replica]) {
      const { nodeId } = this.#targets[replica]!;
      const change = up ? 'replica connected' : 'replica disconnected';
      if (this.#live && !this.#closing)
        this.#options.log.info({ volume: this.volumeId, node: nodeId, reason }, change);
      this.#wasUp[replica] = up;
    }
    this.#changed();
  }

  /** A link or the membership changed. */
  #changed(): void {
    this.#linkChanged.resolve();
    this.#linkChanged = Promise.withResolvers<void>();
    this.#watchIo();
  }

  #watchIo(): void {
    if (!this.#live || this.#closing) return;
    this.#io.served(this.#queues?.serves(this.#inSyncMask(this.#membership)) ?? false);
  }

  #ioChanged(state: IoState, before: IoState): void {
    const { log, ioTimeoutMs } = this.#options;
    const about = { volume: this.volumeId, device: this.path, replicas: this.replicas };
    if (state === 'ok') log.info(about, 'I/O goes on');
    else if (state === 'waiting') log.warn(about, 'no in-sync replica answers: I/O waits');
    else log.error(about, `no in-sync replica has answered for ${ioTimeoutMs} ms: I/O fails`);
    if (state === 'failing' || before === 'failing')
      this.#queues?.post({ type: 'failUnserved', on: state === 'failing' });
  }

  /** One report at a time of each replica: its verdict is for all queues. */
  #lost(replica: number, reason: string): void {
    if (this.#reports.has(replica)) return;
    const report = this.#report(replica, reason).finally(() => this.#reports.delete(replica));
    this.#reports.set(replica, report);
  }

  /** Asks for the verdict on a lost replica until there is one; meanwhile the worker holds its writes. */
  async #report(replica: number, reason: string): Promise<void> {
    const { nodeId } = this.#targets[replica]!;
    const { log } = this.#options;
    log.warn({ volume: this.volumeId, node: nodeId, reason }, 'replica lost');
    while (!this.#closing) {
      try {
        this.#apply(await this.#options.reportLost({ membership: this.#membership, nodeId, reason }));
        return;
      } catch (error) {
        const { code, message } = toBlockwireError(error);
        if (code === 'BW_GENERATION_OLD' || code === 'BW_VOLUME_NOT_FOUND') {
          log.error({ volume: this.volumeId, code }, `this agent may not write any more: ${message}`);
          this.#queues?.post({ type: 'fail' });
          return;
        }
        log.warn({ volume: this.volumeId, code }, `no verdict on the lost replica yet: ${message}`);
        await sleep(REPORT_RETRY_MS);
      }
    }
  }

  #apply(membership: Membership): void {
    // Answers may overtake each other.
    if (membership.epoch < this.#membership.epoch) return;
    this.#membership = membership;
    this.#queues?.post({ type: 'membership', inSync: this.#inSyncMask(membership) });
    this.#changed();
    this.#options.log.info(
      { volume: this.volumeId, epoch: membership.epoch, replicas: this.replicas },
      'new membership',
    );
  }

  #inSyncMask(membership: Membership): number {
    let mask = 0;
    for (const [replica, { nodeId }] of this.#targets.entries()) {
      const member = membership.replicas.find((candidate) => candidate.nodeId === nodeId);
      if (member?.state === IN_SYNC) mask |= 1 << replica;
    }
    return mask;
  }

  /** Resolves when every in-sync replica was tried and every queue reaches one of them. */
  async #connected(queues: Queues): Promise<void> {
    const deadlineMs = performance.now() + CONNECT_MS_MAX;
    const mask = this.#inSyncMask(this.#membership);
    for (;;) {
      const isServed = queues.serves(mask);
      if (isServed && this.#targets.every((_, replica) => queues.link(replica).seen)) return;
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) {
        if (isServed) return;
        const reasons = this.replicas
          .map(({ nodeId, reason }) => `${nodeId}: ${reason || 'no answer'}`)
          .join('; ');
        throw new BlockwireError('BW_NO_IN_SYNC_REPLICA', `no in-sync replica can be reached (${reasons})`);
      }
      await Promise.race([this.#linkChanged.promise, queues.ended, sleep(leftMs)]);
    }
  }

  async #stopUnlessOpen(): Promise<void> {
    if (((await ublkFeatures()) & UblkFeature.SAFE_STOP_DEV) !== 0) {
      await tryStopDevice(this.#deviceId);
      return;
    }
    try {
      // Exclusive opening fails while the device is mounted or held.
      closeSync(openSync(this.path, constants.O_RDONLY | constants.O_EXCL));
    } catch (error) {
      throw new BlockwireError('BW_DEVICE_BUSY', `${this.path} is open or mounted: unmount it first`, {
        cause: error,
      });
    }
    await stopDevice(this.#deviceId);
  }

  /**
   * What programs wrote through the page cache goes to the replicas before the device does; by another process, see
   * above. Throws BW_TIMEOUT when they do not take it.
   */
  async #sync(milliseconds: number): Promise<void> {
    const synced = new Promise<void>((resolve) => {
      execFile('sync', [this.path], (error) => {
        if (error !== null) this.#options.log.warn({ device: this.path, err: error }, 'not synced');
        resolve();
      });
    });
    await this.#within(synced, milliseconds, `${this.path} was not synced`);
  }

  /** Until every queue has an idle tag: new requests are held back from the first attempt on. */
  async #quiesce(deadlineMs: number): Promise<void> {
    for (;;) {
      try {
        await quiesceDevice(this.#deviceId, QUIESCE_MS);
        return;
      } catch (error) {
        const isBusy = error instanceof BlockwireError && error.code === 'BW_DEVICE_BUSY';
        if (!isBusy || performance.now() > deadlineMs) throw error;
      }
    }
  }

  /** Ends the workers and closes /dev/ublkcN; the device stays with the kernel. */
  async #letGo(): Promise<void> {
    this.#end();
    const queues = this.#queues;
    if (queues !== null) {
      // Workers that ended do not hear this.
      queues.post({ type: 'release' });
      await this.#within(queues.ended, 1000, 'the queues did not end').catch(() => queues.terminate());
    }
    this.#closeChar();
  }

  /** Stops and deletes the device, ends the workers; safe at any stage of its life. */
  async #discard(): Promise<void> {
    this.#end();
    if (this.#deviceId < 0) return;
    await stopDevice(this.#deviceId);
    if (this.#queues !== null) await this.#within(this.#queues.ended, START_MS_MAX, 'the queues did not end');
    this.#closeChar();
    await deleteDevice(this.#deviceId);
    this.#deviceId = -1;
  }

  #end(): void {
    this.#closing = true;
    this.#io.stop();
    this.#linkChanged.resolve();
  }

  #closeChar(): void {
    if (this.#charFd >= 0) closeSync(this.#charFd);
    this.#charFd = -1;
  }

  async #within<T>(promise: Promise<T>, milliseconds: number, complaint: string): Promise<T> {
    const timer = new AbortController();
    const late = sleep(milliseconds, undefined, { signal: timer.signal }).then(
      () => {
        throw new BlockwireError('BW_TIMEOUT', `${complaint} within ${milliseconds / 1000} s`);
      },
      () => new Promise<never>(() => {}),
    );
    try {
      return await Promise.race([promise, late]);
    } finally {
      timer.abort();
    }
  }
}

/**
 * Waits until a device whose server ended can be served again: the kernel still tidies up after it. Throws
 * BW_DEVICE_BUSY when somebody serves it all that time.
 */
export async function recoverable(deviceId: number, timeoutMs: number): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  for (;;) {
    try {
      await startRecovery(deviceId);
      return;
    } catch (error) {
      const isBusy = error instanceof BlockwireError && error.code === 'BW_DEVICE_BUSY';
      if (!isBusy || performance.now() > deadlineMs) throw error;
    }
    await sleep(RECOVERY_POLL_MS);
  }
}

async function resolveTargets({ replicas }: Membership): Promise<ReplicaTarget[]> {
  const members = replicas.filter(({ state }) => state === IN_SYNC);
  if (members.length === 0 || members.length > REPLICAS_COUNT_MAX) {
    throw new BlockwireError('BW_NO_IN_SYNC_REPLICA', `the volume has ${members.length} replicas in sync`);
  }
  return Promise.all(members.map(resolveTarget));
}

async function resolveTarget(member: ReplicaMember): Promise<ReplicaTarget> {
  const parsed = parseHostPort(member.nbdAddress);
  if (parsed === null) {
    throw new BlockwireError('BW_INVALID_ARGUMENT', `'${member.nbdAddress}' is not host:port`);
  }
  const { address } = await lookup(parsed.host);
  return { nodeId: member.nodeId, address, port: parsed.port, exportName: member.exportName };
}

/** Device nodes are made by devtmpfs (or udev) a moment after the command. */
async function appears(path: string): Promise<void> {
  const deadlineMs = performance.now() + NODE_APPEARS_MS_MAX;
  while (!existsSync(path)) {
    if (performance.now() > deadlineMs)
      throw new BlockwireError('BW_KERNEL', `${path} did not appear; is /dev a devtmpfs?`);
    await sleep(20);
  }
}
