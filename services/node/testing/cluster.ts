/** Storage nodes as processes of their own under a control plane of the test, and a volume's writer that mirrors. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { NBD_CMD_BLOCKWIRE_CHECKPOINT, NBD_CMD_BLOCKWIRE_MARK } from '@blockwire/proto/nbd/constants.ts';
import {
  type CapabilityMode,
  CapabilitySigner,
  generateCapabilityKey,
} from '@blockwire/shared/capability.ts';
import { addSession } from '@blockwire/shared/export-name.ts';
import { ControlPlane } from './control-plane.ts';
import { type NbdClient, openExport } from './nbd-client.ts';
import { eventually, type NodeProcess, startNode } from './node-process.ts';

export const VOLUME = 'vol-1';
const HOUR = 3600;

export class TestNode {
  readonly id: string;
  readonly dataDir: string;
  process: NodeProcess | null = null;
  readonly #cluster: TestCluster;

  constructor(cluster: TestCluster, id: string, dataDir: string) {
    this.#cluster = cluster;
    this.id = id;
    this.dataDir = dataDir;
  }

  get nbd(): string {
    return this.process!.nbd;
  }

  /** Starts it and waits until it is registered. */
  async start(): Promise<void> {
    const { control, t } = this.#cluster;
    const before = control.registered.length;
    control.forget(this.id);
    const extra = ['--id', this.id, '--control', `127.0.0.1:${control.port}`, '--workers', '2'];
    this.process = await startNode(t, this.dataDir, extra);
    await eventually('its registration', () =>
      control.registered.slice(before).some(({ nodeId }) => nodeId === this.id),
    );
  }

  async kill(): Promise<void> {
    this.#cluster.control.forget(this.id);
    await this.process!.end('SIGKILL');
    this.process = null;
  }

  create(sizeBytes: number, generation: number, epoch: number): Promise<string> {
    return this.#cluster.command(this, {
      createReplica: { volumeId: VOLUME, sizeBytes, generation, epoch },
    });
  }

  /** @param joinedEpoch null: in sync */
  install(
    generation: number,
    epoch: number,
    joinedEpoch: number | null = null,
    lossEpoch = 0,
  ): Promise<string> {
    const role = joinedEpoch === null ? 'REPLICA_STATE_IN_SYNC' : 'REPLICA_STATE_REBUILDING';
    return this.#cluster.command(this, {
      installEpoch: { volumeId: VOLUME, generation, epoch, role, joinedEpoch: joinedEpoch ?? 1, lossEpoch },
    });
  }

  /** An order to copy from here. */
  order(generation: number, epoch: number) {
    return {
      ...{ volumeId: VOLUME, generation, epoch, sourceNodeId: this.id, sourceAddress: this.nbd },
      exportName: this.#cluster.name('peer', generation),
    };
  }

  open(mode: CapabilityMode, generation: number, epoch: number | null, attempt = 1): Promise<NbdClient> {
    const session = { epoch, link: mode === 'writer' ? 'agent/attachment/0' : null, attempt };
    return openExport(this.nbd, addSession(this.#cluster.name(mode, generation), session));
  }

  /** The whole content, by its address. */
  async content(generation: number, sizeBytes: number): Promise<Buffer> {
    const client = await this.open('reader', generation, null);
    const parts: Buffer[] = [];
    for (let at = 0; at < sizeBytes; at += 2 ** 20) {
      parts.push(await client.read(at, Math.min(2 ** 20, sizeBytes - at)));
    }
    client.close();
    return Buffer.concat(parts);
  }

  receivedBytes(): Promise<number> {
    return this.process!.metric('blockwire_node_resync_received_bytes_total');
  }
}

export class TestCluster {
  readonly t: TestContext;
  readonly control = new ControlPlane();
  readonly #signer = new CapabilitySigner(generateCapabilityKey());
  readonly #directory: string;

  private constructor(t: TestContext, directory: string) {
    this.t = t;
    this.#directory = directory;
    this.control.capabilityKey = this.#signer.publicKey;
  }

  static async start(t: TestContext): Promise<TestCluster> {
    const directory = mkdtempSync(join(process.env.BLOCKWIRE_TEST_DIR ?? tmpdir(), 'blockwire-cluster-'));
    const cluster = new TestCluster(t, directory);
    await cluster.control.start();
    t.after(() => {
      cluster.control.stop();
      rmSync(directory, { recursive: true, force: true });
    });
    return cluster;
  }

  async node(id: string): Promise<TestNode> {
    const node = new TestNode(this, id, join(this.#directory, id));
    await node.start();
    return node;
  }

  /** Resolves with the error code. */
  command(node: TestNode, command: Parameters<ControlPlane['command']>[0]): Promise<string> {
    return this.control.command(command, node.id);
  }

  name(mode: CapabilityMode, generation: number): string {
    const expiresAt = Math.ceil(Date.now() / 1000) + HOUR;
    return `${VOLUME}?cap=${this.#signer.sign({ volumeId: VOLUME, generation, mode, expiresAt })}`;
  }

  /** Waits for the report of a rebuild; resolves with its error. */
  async rebuilt(joinedEpoch: number): Promise<string> {
    const find = () => this.control.rebuilds.find((report) => report.joinedEpoch === joinedEpoch);
    await eventually('the end of the rebuild', () => find() !== undefined);
    return find()!.error;
  }
}

/** Writes to all its replicas, and keeps what they must hold. One request at a time. */
export class Mirror {
  readonly expected: Buffer;
  readonly #clients: readonly NbdClient[];
  #marks = 0;

  constructor(clients: readonly NbdClient[], expected: Buffer) {
    this.#clients = clients;
    this.expected = expected;
  }

  async write(offset: number, data: Buffer): Promise<void> {
    data.copy(this.expected, offset);
    const errors = await Promise.all(this.#clients.map((client) => client.write(offset, data)));
    assert.ok(
      errors.every((error) => error === 0),
      `a write failed: ${errors}`,
    );
  }

  /** Everything so far is everywhere: intents may go. */
  async checkpoint(epoch: number): Promise<void> {
    const mark = ++this.#marks;
    for (const type of [NBD_CMD_BLOCKWIRE_MARK, NBD_CMD_BLOCKWIRE_CHECKPOINT]) {
      for (const client of this.#clients) assert.equal(await client.error(type, mark, epoch), 0);
    }
  }

  close(): void {
    for (const client of this.#clients) client.close();
  }
}
