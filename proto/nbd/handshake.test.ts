/** Both sides of the handshake: golden conversations, every refusal, and input that no one should send. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ClientHandshake } from './client-handshake.ts';
import { NBD_REP_ERR_UNKNOWN } from './constants.ts';
import { HandshakeOutput, writeOption } from './options.ts';
import { REPLY_EXTENDED, REPLY_SIMPLE, REPLY_STRUCTURED } from './reply.ts';
import { type ExportDescription, OPTION_SIZE_BYTES_MAX, ServerHandshake } from './server-handshake.ts';

const DISK: ExportDescription = {
  name: 'disk',
  sizeBytes: 2 ** 30,
  transmissionFlags: 0x0165,
  blockSizeMinBytes: 1,
  blockSizePreferredBytes: 4096,
  payloadSizeMaxBytes: 2 ** 25,
  metaContexts: ['base:allocation'],
  description: 'a disk',
};
const UNKNOWN = { reply: NBD_REP_ERR_UNKNOWN, message: 'no such export' };

const GREETING = '4e42444d41474943 49484156454f5054 0003';
const OPT = '49484156454f5054';
const REP = '0003e889045565a9';

function compact(text: string): string {
  return text.replaceAll(/\s/g, '');
}

function bytesOf(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(compact(text), 'hex'));
}

function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function ascii(text: string): string {
  return Buffer.from(text).toString('hex');
}

function option(number: number, data = ''): string {
  const body = compact(data);
  return `${OPT}${number.toString(16).padStart(8, '0')}${(body.length / 2).toString(16).padStart(8, '0')}${body}`;
}

function replyTo(number: number, type: string, data = ''): string {
  const body = compact(data);
  return `${REP}${number.toString(16).padStart(8, '0')}${type}${(body.length / 2).toString(16).padStart(8, '0')}${body}`;
}

function server(extendedHeaders = true): ServerHandshake {
  return new ServerHandshake({ listExports: () => ['disk', 'other'], extendedHeaders });
}

/** Feeds hex, answers lookups at once; returns all output as hex (without the greeting) and what was left over. */
function converse(machine: ServerHandshake, input: string, chunkBytes = Number.POSITIVE_INFINITY) {
  const all = bytesOf(input);
  let pending = new Uint8Array(0);
  let output = '';
  for (let at = 0; at < all.length; at += chunkBytes) {
    const more = all.subarray(at, Math.min(all.length, at + chunkBytes));
    const joined = new Uint8Array(pending.length + more.length);
    joined.set(pending);
    joined.set(more, pending.length);
    pending = joined;
    for (;;) {
      const consumed = machine.consume(pending);
      pending = pending.slice(consumed);
      if (machine.state === 'waitingForExport') {
        machine.answerExport(machine.exportWanted === 'disk' ? DISK : UNKNOWN);
      } else if (consumed === 0) break;
    }
    output += hexOf(machine.takeOutput());
  }
  assert.ok(output.startsWith(compact(GREETING)));
  return { output: output.slice(compact(GREETING).length), left: hexOf(pending) };
}

const GO_DISK = option(7, `00000004 ${ascii('disk')} 0001 0003`);
const FLAGS = '00000003';

describe('server', () => {
  test('GO with block sizes: golden conversation, bytes of the next phase are left alone', () => {
    const machine = server();
    const { output, left } = converse(machine, `${FLAGS} ${GO_DISK} 25609513 0000`);
    assert.equal(
      output,
      compact(
        replyTo(7, '00000003', '0000 0000000040000000 0165') +
          replyTo(7, '00000003', '0003 00000001 00001000 02000000') +
          replyTo(7, '00000001'),
      ),
    );
    assert.equal(left, '256095130000');
    assert.deepEqual(machine.outcome, { exportName: 'disk', replyMode: REPLY_SIMPLE, metaContexts: [] });
  });

  test('the same byte by byte', () => {
    const whole = converse(server(), `${FLAGS} ${option(3)} ${GO_DISK} aa`);
    const pieces = converse(server(), `${FLAGS} ${option(3)} ${GO_DISK} aa`, 1);
    assert.deepEqual(pieces, whole);
  });

  test('LIST names every export; with data it is invalid', () => {
    const { output } = converse(server(), `${FLAGS} ${option(3)} ${option(3, '00')}`);
    assert.equal(
      output,
      compact(
        replyTo(3, '00000002', `00000004 ${ascii('disk')}`) +
          replyTo(3, '00000002', `00000005 ${ascii('other')}`) +
          replyTo(3, '00000001') +
          replyTo(3, '80000003'),
      ),
    );
  });

  test('INFO stays in haggling and gives name and description when asked', () => {
    const machine = server();
    const { output } = converse(machine, `${FLAGS} ${option(6, `00000004 ${ascii('disk')} 0002 0001 0002`)}`);
    assert.ok(output.includes(compact(`0001 ${ascii('disk')}`)));
    assert.ok(output.includes(compact(`0002 ${ascii('a disk')}`)));
    assert.equal(machine.state, 'options');
  });

  test('an unknown export: GO is refused and may try again, EXPORT_NAME ends the connection', () => {
    const machine = server();
    const { output } = converse(
      machine,
      `${FLAGS} ${option(7, `00000002 ${ascii('no')} 0000`)} ${option(7, `00000004 ${ascii('disk')} 0000`)}`,
    );
    assert.ok(output.startsWith(replyTo(7, '80000006', ascii('no such export'))));
    assert.equal(machine.state, 'transmission');
    const old = server();
    assert.equal(converse(old, `${FLAGS} ${option(1, ascii('no'))}`).output, '');
    assert.equal(old.state, 'closed');
    assert.equal(old.closeReason, 'no such export');
  });

  test('EXPORT_NAME answers size and flags, and 124 zeroes to a client that did not refuse them', () => {
    assert.equal(
      converse(server(), `${FLAGS} ${option(1, ascii('disk'))}`).output,
      '0000000040000000' + '0165',
    );
    const padded = converse(server(), `00000001 ${option(1, ascii('disk'))}`).output;
    assert.equal(padded, `00000000400000000165${'00'.repeat(124)}`);
  });

  test('structured replies set DF; meta contexts are listed, selected, and bound to their export', () => {
    const machine = server();
    const query = `00000004 ${ascii('disk')} 00000002 0000000f ${ascii('base:allocation')} 00000003 ${ascii('x:y')}`;
    const { output } = converse(
      machine,
      `${FLAGS} ${option(8)} ${option(9, `00000004 ${ascii('disk')} 00000000`)} ${option(10, query)} ${GO_DISK}`,
    );
    assert.ok(
      output.startsWith(
        compact(
          replyTo(8, '00000001') +
            replyTo(9, '00000004', `00000000 ${ascii('base:allocation')}`) +
            replyTo(9, '00000001') +
            replyTo(10, '00000004', `00000001 ${ascii('base:allocation')}`) +
            replyTo(10, '00000001') +
            replyTo(7, '00000003', '0000 0000000040000000 01e5'),
        ),
      ),
    );
    assert.deepEqual(machine.outcome, {
      exportName: 'disk',
      replyMode: REPLY_STRUCTURED,
      metaContexts: [{ id: 1, name: 'base:allocation' }],
    });
  });

  test('SET_META_CONTEXT without structured replies is invalid', () => {
    const { output } = converse(server(), `${FLAGS} ${option(10, `00000004 ${ascii('disk')} 00000000`)}`);
    assert.equal(output, replyTo(10, '80000003'));
  });

  test('extended headers: acknowledged, win over structured replies, forbid EXPORT_NAME', () => {
    const machine = server();
    const { output } = converse(machine, `${FLAGS} ${option(11)} ${option(8)} ${option(1, ascii('disk'))}`);
    assert.equal(output, replyTo(11, '00000001') + replyTo(8, '8000000a'));
    assert.equal(machine.state, 'closed');
    const going = server();
    converse(going, `${FLAGS} ${option(11)} ${GO_DISK}`);
    assert.equal(going.outcome?.replyMode, REPLY_EXTENDED);
    assert.equal(converse(server(false), `${FLAGS} ${option(11)}`).output, replyTo(11, '80000001'));
  });

  test('unknown options, STARTTLS, ABORT', () => {
    const machine = server();
    const { output } = converse(machine, `${FLAGS} ${option(99, 'abcd')} ${option(5)} ${option(2)} 1234`);
    assert.equal(output, replyTo(99, '80000001') + replyTo(5, '80000002') + replyTo(2, '00000001'));
    assert.equal(machine.state, 'closed');
  });

  test('malformed data is refused and the negotiation goes on', () => {
    const bad = [
      option(7, '00000004 6469'),
      option(7, `00000004 ${ascii('disk')} 0002 0003`),
      option(7, `ffffffff ${ascii('disk')} 0000`),
      option(6, `00000004 ${ascii('di')}00ff 0000`),
      option(8, '00'),
    ];
    const machine = server();
    const { output } = converse(machine, `${FLAGS} ${bad.join('')}`);
    assert.equal(output.split('80000003').length - 1, bad.length);
    assert.equal(machine.state, 'options');
  });

  test('long data is skipped and refused; absurd data, unknown flags and a wrong magic end the connection', () => {
    const long = option(7, 'ee'.repeat(OPTION_SIZE_BYTES_MAX + 1));
    const { output } = converse(server(), `${FLAGS} ${long} ${option(2)}`, 1000);
    assert.equal(output, replyTo(7, '80000009') + replyTo(2, '00000001'));
    for (const input of [`${FLAGS} ${OPT} 00000007 7fffffff`, '00000004', `${FLAGS} ${'00'.repeat(16)}`]) {
      const machine = server();
      converse(machine, input);
      assert.equal(machine.state, 'closed', input);
    }
  });
});

/** Runs the two machines against each other until neither has anything to say. */
function meet(client: ClientHandshake, machine: ServerHandshake): void {
  let toClient = new Uint8Array(0);
  let toServer = new Uint8Array(0);
  for (let round = 0; round < 20; round++) {
    toClient = new Uint8Array([...toClient, ...machine.takeOutput()]);
    toClient = toClient.slice(client.consume(toClient));
    toServer = new Uint8Array([...toServer, ...client.takeOutput()]);
    toServer = toServer.slice(machine.consume(toServer));
    if (machine.state === 'waitingForExport') {
      machine.answerExport(machine.exportWanted === 'disk' ? DISK : UNKNOWN);
    }
  }
}

describe('client', () => {
  test('meets our server with simple and with structured replies', () => {
    for (const structuredReplies of [false, true]) {
      const client = new ClientHandshake({ exportName: 'disk', structuredReplies });
      meet(client, server());
      assert.equal(client.state, 'ready');
      assert.deepEqual(client.result, {
        sizeBytes: 2 ** 30,
        transmissionFlags: structuredReplies ? 0x01e5 : 0x0165,
        structuredReplies,
        contextIds: new Map(),
        blockSizeMinBytes: 1,
        blockSizePreferredBytes: 4096,
        payloadSizeMaxBytes: 2 ** 25,
      });
    }
  });

  test('selects contexts; those that the server has not are left out', () => {
    for (const metaContexts of [['base:allocation', 'other:context'], ['other:context']]) {
      const client = new ClientHandshake({ exportName: 'disk', structuredReplies: true, metaContexts });
      const machine = server();
      meet(client, machine);
      const [selected] = machine.outcome?.metaContexts ?? [];
      assert.equal(selected?.name, metaContexts.length === 2 ? 'base:allocation' : undefined);
      const ids = selected === undefined ? [] : [[selected.name, selected.id] as const];
      assert.deepEqual(client.result?.contextIds, new Map(ids));
    }
    const unknown = new ClientHandshake({
      exportName: 'nope',
      structuredReplies: true,
      metaContexts: ['a:b'],
    });
    meet(unknown, server());
    assert.match(unknown.failure?.message ?? '', /no such export/);
  });

  test('says what the server said when it refuses', () => {
    const client = new ClientHandshake({ exportName: 'nope', structuredReplies: false });
    meet(client, server());
    assert.equal(client.state, 'failed');
    assert.equal(client.failure?.reply, NBD_REP_ERR_UNKNOWN);
    assert.match(client.failure?.message ?? '', /'nope'.*no such export/);
  });

  test('sends the golden opening', () => {
    const client = new ClientHandshake({ exportName: 'disk', structuredReplies: false });
    assert.equal(client.consume(bytesOf(GREETING).subarray(0, 17)), 0);
    assert.equal(client.consume(bytesOf(GREETING)), 18);
    assert.equal(hexOf(client.takeOutput()), compact(FLAGS + GO_DISK));
  });

  test('falls back to EXPORT_NAME where GO is unknown', () => {
    const client = new ClientHandshake({ exportName: 'disk', structuredReplies: false });
    client.consume(bytesOf(`4e42444d41474943 49484156454f5054 0001`));
    client.takeOutput();
    client.consume(bytesOf(replyTo(7, '80000001')));
    assert.equal(hexOf(client.takeOutput()), option(1, ascii('disk')));
    const answer = bytesOf(`0000000040000000 0165 ${'00'.repeat(124)} 67`);
    assert.equal(client.consume(answer.subarray(0, 100)), 0);
    assert.equal(client.consume(answer), 134);
    assert.equal(client.state, 'ready');
    assert.equal(client.result?.sizeBytes, 2 ** 30);
  });

  test('fails on what is no NBD server, on an oldstyle one, and on a broken reply', () => {
    const inputs = [
      ascii('HTTP/1.1 400 Bad Request\r\n'),
      `4e42444d41474943 0000420281861253 ${'00'.repeat(8)}`,
      `${GREETING} ${'00'.repeat(20)}`,
      `${GREETING} ${replyTo(3, '00000001')}`,
      `${GREETING} ${replyTo(7, '00000003', '0000 00000000')}`,
      `${GREETING} ${replyTo(7, '00000003', '0000 ffffffffffffffff 0001')} ${replyTo(7, '00000001')}`,
      `${GREETING} ${replyTo(7, '00000001')}`,
      `${GREETING} ${REP} 00000007 00000003 7fffffff`,
    ];
    for (const input of inputs) {
      const client = new ClientHandshake({ exportName: 'disk', structuredReplies: false });
      client.consume(bytesOf(input));
      assert.equal(client.state, 'failed', input);
      assert.equal(client.failure?.reply, null);
    }
  });
});

/** A small seeded generator (mulberry32): the seed of a failing run is in the assertion's message. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

test('mutated conversations never throw, never stall with a full option, never answer without bound', () => {
  for (let seed = 1; seed <= 2000; seed++) {
    const random = generator(seed);
    const input = new HandshakeOutput();
    input.uint32(random() % 8 === 0 ? random() : random() % 4);
    for (let i = random() % 6; i >= 0; i--) {
      const data = new Uint8Array(random() % 64);
      for (let j = 0; j < data.length; j++) data[j] = random();
      if (data.length > 8 && random() % 2 === 0) data.set([0, 0, 0, 4, 0x64, 0x69, 0x73, 0x6b]);
      writeOption(input, random() % 13, data);
    }
    const bytes = input.take();
    for (let i = random() % 4; i > 0; i--) bytes[random() % bytes.length] = random();
    const machine = server();
    assert.doesNotThrow(() => {
      const { output } = converse(machine, hexOf(bytes), 1 + (random() % 40));
      assert.ok(output.length < 16 * 1024);
    }, `seed ${seed}`);
    const client = new ClientHandshake({ exportName: 'disk', structuredReplies: seed % 2 === 0 });
    const garbled = bytesOf(`${GREETING} ${replyTo(7, '00000003', '0000 0000000040000000 0165')}`);
    garbled[random() % garbled.length] = random();
    assert.doesNotThrow(() => client.consume(garbled), `seed ${seed}`);
  }
});
