/**
 * One attached volume on the main thread: its ublk device, its worker, and the conversation with the control plane about
 * lost replicas.
 *
 *   create:  ADD_DEV → SET_PARAMS → open /dev/ublkcN → worker fetches all tags and connects → START_DEV
 *   detach:  sync → TRY_STOP_DEV (or STOP_DEV) → worker ends → close /dev/ublkcN → DEL_DEV
 */
import { lookup } from 'node:dns/promises';
import { closeSync, constants, existsSync, openSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseHostPort } from '@blockwire/native/sockets.ts';
import { RingWorker } from '@blockwire/native/worker-loop.ts';
import type { Membership, ReplicaMember } from '@blockwire/proto/control/types.ts';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import { createCounters, openCounters } from './datapath/counters.ts';
import { datapathFeatures } from './datapath/ladder.ts';
import type {
  Datapath,
  DatapathLadder,
  FromWorker,
  QueueWorkerData,
  ReplicaTarget,
  ToWorker,
} from './datapath/messages.ts';
import { REPLICAS_COUNT_MAX } from './datapath/mirror.ts';
import { createWriteRanges } from './datapath/write-ranges.ts';
import {
  addDevice,
  deleteDevice,
  setParams,
  startDevice,
  stopDevice,
  tryStopDevice,
  ublkFeatures,
} from './ublk/control.ts';
import { UblkFeature } from './ublk/uapi.ts';

const CONNECT_MS_MAX = 15_000;
const START_MS_MAX = 60_000;
const NODE_APPEARS_MS_MAX = 10_000;
const REPORT_RETRY_MS = 500;
const IN_SYNC = 'REPLICA_STATE_IN_SYNC';

export interface DeviceOptions {
  readonly log: Logger;
  readonly attachmentId: string;
  readonly volumeName: string;
  readonly membership: Membership;
  readonly sizeBytes: number;
  readonly datapath: Datapath;
  /** `chooseLadder` of the host's probe. */
  readonly ladder: DatapathLadder;
  readonly queueDepth: number;
  readonly ioSizeBytesMax: number;
  readonly replicaTimeoutMs: number;
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
  readonly #counters = createCounters();
  readonly #targets: readonly ReplicaTarget[];
  readonly #links: { seen: boolean; up: boolean; reason: string }[];
  readonly #fetched = Promise.withResolvers<void>();
  readonly #workerEnded = Promise.withResolvers<Error | null>();
  #linkChanged = Promise.withResolvers<void>();
  #membership: Membership;
  #deviceId = -1;
  #charFd = -1;
  #worker: RingWorker | null = null;
  #closing = false;

  private constructor(options: DeviceOptions, targets: readonly ReplicaTarget[]) {
    this.#options = options;
    this.#membership = options.membership;
    this.#targets = targets;
    this.#links = targets.map(() => ({ seen: false, up: false, reason: '' }));
  }

  /**
   * Makes the device. Throws BW_NO_IN_SYNC_REPLICA if no in-sync replica answers, BW_KERNEL if the kernel refuses;
   * nothing is left behind then.
   */
  static async create(options: DeviceOptions): Promise<BlockDevice> {
    const members = options.membership.replicas.filter(({ state }) => state === IN_SYNC);
    if (members.length === 0 || members.length > REPLICAS_COUNT_MAX) {
      throw new BlockwireError('BW_NO_IN_SYNC_REPLICA', `the volume has ${members.length} replicas in sync`);
    }
    const device = new BlockDevice(options, await Promise.all(members.map(resolveTarget)));
    try {
      await device.#start();
      return device;
    } catch (error) {
      await device.#discard();
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

  /** The worker's counters, see COUNTERS. */
  get counters(): Float64Array {
    return openCounters(this.#counters);
  }

  /** By queue: its counters and latency histograms (datapath/counters.ts). */
  get queueMemories(): readonly SharedArrayBuffer[] {
    return [this.#counters];
  }

  get replicas(): readonly ReplicaStatus[] {
    return this.#targets.map(({ nodeId }, replica) => ({
      nodeId,
      inSync: (this.#inSyncMask(this.#membership) & (1 << replica)) !== 0,
      connected: this.#links[replica]!.up,
      reason: this.#links[replica]!.reason,
    }));
  }

  /**
   * Removes the device. Without `force`, BW_DEVICE_BUSY while it is open. With it, requests that still wait for a
   * replica fail with an I/O error.
   */
  async detach(force: boolean): Promise<void> {
    if (force) {
      this.#post({ type: 'fail' });
      await stopDevice(this.#deviceId);
    } else {
      await this.#sync();
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
    const info = await addDevice({
      id: -1,
      queueCount: 1,
      queueDepth,
      ioSizeBytesMax,
      features: (wanted & offered) | UblkFeature.CMD_IOCTL_ENCODE,
    });
    this.#deviceId = info.id;
    await setParams(info.id, {
      sizeBytes,
      blockSizeBytes: 512,
      ioSizeBytesMax: info.ioSizeBytesMax,
      discardGranularityBytes: 4096,
    });
    const charPath = `/dev/ublkc${info.id}`;
    await appears(charPath);
    this.#charFd = openSync(charPath, constants.O_RDWR);
    this.#startWorker(info.queueDepth, info.ioSizeBytesMax);
    await this.#within(this.#fetched.promise, CONNECT_MS_MAX, 'the queue did not fetch its requests');
    await this.#connected();
    await this.#within(startDevice(info.id), START_MS_MAX, 'the kernel did not start the device');
    await appears(this.path);
  }

  #startWorker(queueDepth: number, ioSizeBytesMax: number): void {
    const data: QueueWorkerData = {
      charFd: this.#charFd,
      queueId: 0,
      queueCount: 1,
      writeRanges: createWriteRanges(1, queueDepth),
      wakeFds: [],
      queueDepth,
      ioSizeBytesMax,
      sizeBytes: this.#options.sizeBytes,
      datapath: this.#options.datapath,
      ladder: this.#options.ladder,
      replicas: this.#targets,
      inSync: this.#inSyncMask(this.#membership),
      replicaTimeoutMs: this.#options.replicaTimeoutMs,
      counters: this.#counters,
    };
    this.#worker = new RingWorker({
      module: new URL('./datapath/queue-worker.ts', import.meta.url),
      name: `ublk-${this.#deviceId}-0`,
      data,
      onMessage: (message) => this.#hear(message as FromWorker),
      onExit: (error) => {
        this.#fetched.reject(error ?? new Error('the queue worker ended'));
        this.#workerEnded.resolve(error);
        if (error !== null)
          this.#options.log.error({ err: error, device: this.path }, 'a queue worker failed');
      },
    });
    // Awaited only while the device starts.
    this.#fetched.promise.catch(() => {});
  }

  #hear(message: FromWorker): void {
    switch (message.type) {
      case 'fetched':
        this.#fetched.resolve();
        break;
      case 'link': {
        const link = this.#links[message.replica]!;
        if (link.seen && link.up !== message.up && !this.#closing) {
          const { nodeId } = this.#targets[message.replica]!;
          const change = message.up ? 'replica connected' : 'replica disconnected';
          this.#options.log.info({ volume: this.volumeId, node: nodeId, reason: message.reason }, change);
        }
        Object.assign(link, { seen: true, up: message.up, reason: message.reason });
        this.#linkChanged.resolve();
        this.#linkChanged = Promise.withResolvers<void>();
        break;
      }
      case 'lost':
        void this.#report(message.replica, message.reason);
        break;
    }
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
          this.#post({ type: 'fail' });
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
    this.#post({ type: 'membership', inSync: this.#inSyncMask(membership) });
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

  /** Resolves when every in-sync replica was tried and one of them is up. */
  async #connected(): Promise<void> {
    const deadlineMs = performance.now() + CONNECT_MS_MAX;
    for (;;) {
      const up = this.#links.some((link) => link.up);
      if (up && this.#links.every((link) => link.seen)) return;
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) {
        if (up) return;
        const reasons = this.replicas
          .map(({ nodeId, reason }) => `${nodeId}: ${reason || 'no answer'}`)
          .join('; ');
        throw new BlockwireError('BW_NO_IN_SYNC_REPLICA', `no in-sync replica can be reached (${reasons})`);
      }
      await Promise.race([this.#linkChanged.promise, this.#workerEnded.promise, sleep(leftMs)]);
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

  /** What programs wrote through the page cache goes to the replicas before the device does. */
  async #sync(): Promise<void> {
    const handle = await open(this.path, 'r').catch(() => null);
    if (handle === null) return;
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  }

  /** Ends the worker, closes and deletes the device; safe at any stage of its life. */
  async #discard(): Promise<void> {
    this.#closing = true;
    if (this.#deviceId < 0) return;
    await stopDevice(this.#deviceId);
    if (this.#worker !== null)
      await this.#within(this.#workerEnded.promise, START_MS_MAX, 'the queue did not end');
    if (this.#charFd >= 0) closeSync(this.#charFd);
    this.#charFd = -1;
    await deleteDevice(this.#deviceId);
    this.#deviceId = -1;
  }

  #post(message: ToWorker): void {
    this.#worker?.post(message);
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
